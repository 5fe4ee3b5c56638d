#!/usr/bin/env bash
# The files of the image: image/rootfs.sh BINARY FOLDER
# The Dockerfile and e2e/test_image.py both call this script, so what is tested is what is
# released. FOLDER gets the binary, the libraries of this machine that the binary is linked
# with, the public certificate authorities, a user, and nothing else: no shell, no package
# manager. Name resolution by files and DNS is part of glibc itself since 2.34.
set -euo pipefail
umask 022
if [ $# -ne 2 ]; then
  echo "usage: image/rootfs.sh BINARY FOLDER" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
binary=$1 root=$2
if [ -n "$(ls -A "$root" 2>/dev/null)" ]; then
  echo "$root is not empty: name a new folder" >&2
  exit 1
fi
install -D -m 755 "$binary" "$root/usr/bin/serinus"

libraries=$(ldd "$binary") || { echo "$binary is not linked for this machine" >&2; exit 1; }
if grep 'not found' <<<"$libraries" >&2; then exit 1; fi
# "libm.so.6 => /lib/… (0x…)", and the loader as "/lib64/ld-… (0x…)".
libraries=$(awk '$2 == "=>" {print $3} $1 ~ "^/" {print $1}' <<<"$libraries")
for library in $libraries; do
  install -D -m 755 "$library" "$root$library"
done

for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem; do
  [ -s "$bundle" ] && break
done
[ -s "$bundle" ] || { echo "this machine has no certificate authorities: install ca-certificates" >&2; exit 1; }
install -D -m 644 "$bundle" "$root/etc/ssl/certs/ca-certificates.crt"

echo 'serinus:x:65532:65532::/:/nonexistent' >"$root/etc/passwd"
echo 'serinus:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
install -d -m 1777 "$root/tmp"
install -D -m 644 "$here/LICENSE" "$root/usr/share/doc/serinus/LICENSE"

# Licences of the Debian packages, and what scanners know their versions by.
if command -v dpkg-query >/dev/null; then
  for library in $libraries; do
    # A package may have been built for /lib or for /usr/lib.
    dpkg-query --search "$library" 2>/dev/null || dpkg-query --search "/usr$library"
  done | cut -d: -f1 | cat - <(echo ca-certificates) | sort -u | while read -r package; do
    install -D -m 644 "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/copyright"
    install -d "$root/var/lib/dpkg/status.d"
    dpkg-query --status "$package" >"$root/var/lib/dpkg/status.d/$package"
  done
fi
