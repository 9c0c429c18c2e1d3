#!/usr/bin/env bash
# Installs the peers: Debian's packages as root, the rest into the folder given. What is there stays.
set -euo pipefail
folder=$1
here=$(cd "$(dirname "$0")" && pwd)

packages=()
command -v curl >/dev/null || packages+=(curl)
command -v h2load >/dev/null || packages+=(nghttp2-client)
command -v haproxy >/dev/null || packages+=(haproxy)
command -v nginx >/dev/null || packages+=(nginx-light)
command -v node >/dev/null || packages+=(nodejs)
command -v npm >/dev/null || packages+=(npm)
if [ ${#packages[@]} -gt 0 ]; then
  # Debian would start the proxies as services; they are not wanted as such.
  as_root=$([ "$(id -u)" = 0 ] || echo sudo)
  $as_root apt-get update -qq
  printf '#!/bin/sh\nexit 101\n' | $as_root tee /usr/sbin/policy-rc.d >/dev/null
  $as_root chmod +x /usr/sbin/policy-rc.d
  $as_root apt-get install -y -qq --no-install-recommends "${packages[@]}"
  $as_root rm -f /usr/sbin/policy-rc.d
fi

mkdir -p "$folder"
if ! cmp -s "$here/requirements.txt" "$folder/requirements.txt"; then
  [ -x "$folder/venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder/venv"
  "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$folder/requirements.txt"
fi
if ! cmp -s "$here/package.json" "$folder/js/package.json"; then
  mkdir -p "$folder/js"
  cp "$here/package.json" "$folder/js/package.json"
  npm install --silent --no-audit --no-fund --prefix "$folder/js" || { rm "$folder/js/package.json"; exit 1; }
fi
