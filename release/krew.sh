#!/usr/bin/env bash
# The Krew manifest of the kubectl plugin: release/krew.sh TAG REPOSITORY ARCHIVE...
# An archive is named kubectl-serinus_OS_ARCH.tar.gz; REPOSITORY is OWNER/NAME on GitHub.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: release/krew.sh TAG REPOSITORY ARCHIVE..." >&2
  exit 2
fi
tag=$1 repository=$2
shift 2
cat <<EOF
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: serinus
spec:
  version: $tag
  homepage: https://github.com/$repository
  shortDescription: Look at releases of prompts and models
  description: |
    Shows, follows, approves, promotes and aborts the releases of Serinus, which
    moves traffic to a new prompt or model step by step and compares it with the
    one that serves.
  platforms:
EOF
for archive in "$@"; do
  name=$(basename "$archive" .tar.gz)
  if [[ ! $name =~ ^kubectl-serinus_([a-z]+)_([a-z0-9]+)$ ]]; then
    echo "$archive is not named kubectl-serinus_OS_ARCH.tar.gz" >&2
    exit 1
  fi
  cat <<EOF
    - selector:
        matchLabels:
          os: ${BASH_REMATCH[1]}
          arch: ${BASH_REMATCH[2]}
      uri: https://github.com/$repository/releases/download/$tag/$name.tar.gz
      sha256: $(sha256sum "$archive" | cut -d' ' -f1)
      bin: kubectl-serinus
EOF
done
