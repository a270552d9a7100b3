#!/bin/sh
# Inside the wheel containers: a static libcrypto, because theirs is too old, shared, or both.
# 3.5 is the long-term release (until April 2030). Only libcrypto is built: no TLS, no program.
set -eu
version=3.5.5
sha256=b28c91532a8b65a1f983b4c28b7488174e4a01008e29ce8e69bd789f28bc2a89
prefix=${OPENSSL_DIR:?}

test -f "$prefix/lib/libcrypto.a" && exit 0
if command -v dnf > /dev/null; then dnf install -y -q perl-core; else apk add -q perl linux-headers; fi
cd /tmp
curl -fsSL --retry 3 -o openssl.tar.gz \
    "https://github.com/openssl/openssl/releases/download/openssl-$version/openssl-$version.tar.gz"
echo "$sha256  openssl.tar.gz" | sha256sum -c -
tar xzf openssl.tar.gz
cd "openssl-$version"
./Configure --prefix="$prefix" --libdir=lib -fPIC -fvisibility=hidden \
    no-shared no-apps no-docs no-tests no-engine no-legacy no-dso
make -s -j"$(nproc)" build_generated libcrypto.a
mkdir -p "$prefix/lib" "$prefix/include"
cp libcrypto.a "$prefix/lib/"
cp -R include/openssl "$prefix/include/"
