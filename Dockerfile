# The image of operators and gateways: docker build -t serinus:dev .
#
# Each platform is built on itself: natively, or emulated with --platform (slow). The second
# stage is all that users get; e2e/test_image.py builds and runs that stage with the files that
# image/rootfs.sh collects on the machine of the test.
ARG RUST=1.95
# Debian 12: what is linked with its glibc 2.36 runs on newer ones, too.
FROM rust:${RUST}-bookworm AS files
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist --bin serinus && image/rootfs.sh target/dist/serinus /files

FROM scratch
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="serinus" \
      org.opencontainers.image.description="Canary releases of prompts and models for LLM applications, by evidence" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=files /files/ /
# A number, so that a kubelet knows that it is not root.
USER 65532:65532
ENTRYPOINT ["/usr/bin/serinus"]
