#!/usr/bin/env bash
# Prints a folder with what builds and starts the image: buildah, runc, the seccomp profile and
# the policy (any image) that they read. They are those that are installed, or the Debian
# packages, unpacked once into the user's cache (nothing is installed). Both need root. Where
# they can not run, this prints "missing: " and why; test_image.py is then skipped and says so,
# and fails where SERINUS_IMAGE_REQUIRED is set, as the workflow of a release does.
set -euo pipefail
missing() {
  echo "missing: $1"
  exit 0
}
[ "$(uname -s)" = Linux ] || missing "containers need Linux"
[ "$(id -u)" = 0 ] || missing "buildah and runc need root here: run these tests as root, in a virtual machine for example"
folder="${SERINUS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serinus-e2e}/image-1"
if [ ! -e "$folder/.complete" ]; then
  rm -rf "$folder" && mkdir -p "$folder"
  cd "$folder"
  seccomp=/usr/share/containers/seccomp.json
  if buildah=$(command -v buildah) && runc=$(command -v runc) && [ -e "$seccomp" ]; then
    ln -s "$buildah" buildah
    ln -s "$runc" runc
  else
    command -v apt-get >/dev/null || missing "install buildah, runc and containers-common (no apt-get is here to download them)"
    # What they depend on and this machine has not, whatever the release of Debian or Ubuntu.
    mkdir -p debs/partial
    download() {
      apt-get install -q --yes --download-only --no-install-recommends -o Debug::NoLocking=1 \
        -o "Dir::Cache::archives=$folder/debs" buildah runc golang-github-containers-common >&2
    }
    download || { apt-get update -q >&2 && download; } || missing "apt-get could not download buildah and runc"
    for package in debs/*.deb; do dpkg -x "$package" unpacked; done
    seccomp="$folder/unpacked/usr/share/containers/seccomp.json"
    libraries=$(find "$folder/unpacked" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:)
    for program in buildah runc; do
      printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$libraries" \
        "$(find "$folder/unpacked" -path "*bin/$program" -type f -print -quit)" >"$program"
      chmod +x "$program"
    done
    rm -r debs
  fi
  cp "$seccomp" seccomp.json
  echo '{"default": [{"type": "insecureAcceptAnything"}]}' >policy.json
  ./buildah --version >&2 && ./runc --version >&2 || missing "buildah or runc does not start"
  touch .complete
fi
echo "$folder"
