//! TLS in both directions, with certificates of an authority made here.

use std::{fs, time::Duration};

use futures::{StreamExt, stream};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use serde_json::json;
use serinus::{
    api::{SecretText, llm_deployment::SecretKeyRef},
    gateway::{
        routes::ReleaseInput,
        tls::{ServerFiles, ServerTls, TlsError, client_config},
    },
};
use tempfile::TempDir;

use crate::bench::{Bench, edit, event, good, open, streamed};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate and its key.
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn server(&self) -> (String, String) {
        self.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth)
    }
}

struct Files(TempDir);

impl Files {
    fn new(server: (String, String), client_ca: Option<&str>) -> (Self, ServerFiles) {
        let files = Self(TempDir::new().unwrap());
        files.write(server);
        if let Some(pem) = client_ca {
            fs::write(files.0.path().join("ca.pem"), pem).unwrap();
        }
        let path = |name| files.0.path().join(name);
        let server = ServerFiles {
            certificate: path("tls.crt"),
            key: path("tls.key"),
            client_ca: client_ca.map(|_| path("ca.pem")),
        };
        (files, server)
    }

    fn write(&self, (certificate, key): (String, String)) {
        fs::write(self.0.path().join("tls.crt"), certificate).unwrap();
        fs::write(self.0.path().join("tls.key"), key).unwrap();
    }
}

fn client(ca_pem: &str, identity: Option<(&str, &str)>) -> reqwest::Client {
    let identity = identity.map(|(c, k)| (c.as_bytes(), k.as_bytes()));
    let config = client_config(Some(ca_pem.as_bytes()), identity).unwrap();
    reqwest::Client::builder().tls_backend_preconfigured((*config).clone()).build().unwrap()
}

async fn models(client: &reqwest::Client, bench: &Bench) -> reqwest::Result<u16> {
    let url = format!("https://localhost:{}/v1/models", bench.address.port());
    Ok(client.get(url).send().await?.status().as_u16())
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_breaks_none() {
    let (old, new) = (Authority::new(), Authority::new());
    let (files, server) = Files::new(old.server(), None);
    let tls = ServerTls::load(server).unwrap();
    let bench = Bench::behind(open(), Some(tls.clone()), |_| {
        let events = stream::iter(0..20).then(|i| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok::<_, std::io::Error>(event("x", (i == 19).then_some("stop")))
        });
        streamed(events)
    })
    .await;
    bench.serve(bench.release(0));
    let (trusts_old, trusts_new) = (client(&old.pem(), None), client(&new.pem(), None));
    assert_eq!(models(&trusts_old, &bench).await.unwrap(), 200);
    assert!(models(&trusts_new, &bench).await.is_err());
    let body = json!({"model": "r", "stream": true, "serinus": {"variables": {"question": "?"}}});
    let url = format!("https://localhost:{}/v1/chat/completions", bench.address.port());
    let answer = trusts_old.post(url).json(&body).send().await.unwrap();

    // A half-written pair changes nothing.
    files.write((new.server().0, "no key".to_owned()));
    assert!(matches!(tls.reload(), Err(TlsError::NoKey(_))));
    files.write((new.server().0, new.server().1));
    assert!(matches!(tls.reload(), Err(TlsError::Unusable(_))), "of another certificate");
    assert_eq!(models(&client(&old.pem(), None), &bench).await.unwrap(), 200);

    files.write(new.server());
    assert!(tls.reload().unwrap());
    assert!(!tls.reload().unwrap(), "nothing is new");
    assert_eq!(models(&client(&new.pem(), None), &bench).await.unwrap(), 200);
    assert!(models(&client(&old.pem(), None), &bench).await.is_err());
    let text = answer.text().await.unwrap();
    assert_eq!(text.matches("data: ").count(), 20, "the stream went on over the old one");
}

#[tokio::test]
async fn with_an_authority_for_clients_nobody_without_its_certificate_gets_in() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (_files, server) = Files::new(authority.server(), Some(&authority.pem()));
    let tls = ServerTls::load(server).unwrap();
    let bench = Bench::behind(open(), Some(tls), |_| good()).await;
    bench.serve(bench.release(0));
    let usage = || ExtendedKeyUsagePurpose::ClientAuth;
    let (mine, theirs) = (authority.issue("app", usage()), other.issue("app", usage()));
    for (what, identity, admitted) in [
        ("its own", Some((mine.0.as_str(), mine.1.as_str())), true),
        ("another authority's", Some((theirs.0.as_str(), theirs.1.as_str())), false),
        ("none", None, false),
    ] {
        let answer = models(&client(&authority.pem(), identity), &bench).await;
        assert_eq!(answer.is_ok(), admitted, "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn who_speaks_no_tls_is_closed_and_others_are_served() {
    let authority = Authority::new();
    let (_files, server) = Files::new(authority.server(), None);
    let bench = Bench::behind(open(), Some(ServerTls::load(server).unwrap()), |_| good()).await;
    bench.serve(bench.release(0));
    let plain = bench.client.get(format!("http://{}/v1/models", bench.address)).send().await;
    assert!(plain.is_err());
    assert_eq!(models(&client(&authority.pem(), None), &bench).await.unwrap(), 200);
}

#[test]
fn what_can_not_be_used_is_told_without_its_content() {
    let authority = Authority::new();
    let (certificate, key) = authority.server();
    let (other, _) = authority.server();
    let (c, k, o) = (certificate.as_bytes(), key.as_bytes(), other.as_bytes());
    let error = |ca, identity| client_config(ca, identity).err().map(|e| e.to_string());
    for (found, expected) in [
        (error(Some(b"nonsense"), None), "no certificate in PEM form"),
        (error(Some(k), None), "no certificate in PEM form"),
        (error(Some(c), Some((c, c))), "no private key in PEM form"),
        (error(Some(c), Some((k, k))), "no certificate in PEM form"),
        (error(Some(c), Some((o, k))), "can not be used"),
    ] {
        let found = found.unwrap();
        assert!(found.contains(expected), "{found}");
        let secret = key.lines().nth(1).unwrap();
        assert!(!found.contains(secret));
    }
    assert!(client_config(Some(c), Some((c, k))).is_ok());
    let missing = ServerFiles {
        certificate: "/no/such/file".into(),
        key: "/no/such/file".into(),
        client_ca: None,
    };
    let error = ServerTls::load(missing).err().unwrap().to_string();
    assert!(error.contains("/no/such/file can not be read"), "{error}");
}

/// A release whose backend is at an address with TLS, and the Secrets that it names.
fn behind_tls(bench: &Bench, port: u16, secrets: &[(&str, &str, &str)]) -> ReleaseInput {
    let mut release = bench.release(0);
    let endpoint = json!({
        "url": format!("https://localhost:{port}/v1"),
        "tls": {
            "caSecretRef": {"name": "authority", "key": "ca.crt"},
            "clientCertificateSecretRef": {"name": "certificate"},
        },
    });
    for variant in release.variants.values_mut() {
        edit(variant, |variant| {
            variant.backend.model = "r".to_owned();
            variant.backend.endpoint = Some(serde_json::from_value(endpoint.clone()).unwrap());
        });
    }
    let secret = |(name, key, text): &(&str, &str, &str)| {
        let reference = SecretKeyRef { name: (*name).to_owned(), key: (*key).to_owned() };
        (reference, SecretText::from((*text).to_owned()))
    };
    release.secrets = secrets.iter().map(secret).collect();
    release
}

/// A model behind TLS, which is another gateway and answers on the route `r`; and the
/// authority of its certificate.
pub async fn model() -> (Bench, String) {
    let authority = Authority::new();
    let (_files, server) = Files::new(authority.server(), None);
    let model = Bench::behind(open(), ServerTls::load(server).ok(), |_| good()).await;
    let mut own = model.release(0);
    for variant in own.variants.values_mut() {
        edit(variant, |variant| {
            variant.prompt.messages.clear();
            variant.prompt.variables = None;
        });
    }
    model.serve(own);
    (model, authority.pem())
}

#[tokio::test]
async fn a_model_is_asked_over_tls_with_the_certificates_of_its_secrets_and_new_ones_count() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (_files, server) = Files::new(authority.server(), Some(&authority.pem()));
    // The model is another gateway, which asks for a certificate.
    let model = Bench::behind(open(), ServerTls::load(server).ok(), |_| good()).await;
    let mut own = model.release(0);
    for variant in own.variants.values_mut() {
        edit(variant, |variant| {
            variant.prompt.messages.clear();
            variant.prompt.variables = None;
        });
    }
    model.serve(own);
    let bench = Bench::new(|_| good()).await;
    let usage = || ExtendedKeyUsagePurpose::ClientAuth;
    let (mine, theirs) = (authority.issue("app", usage()), other.issue("app", usage()));
    let (ours, strangers) = (authority.pem(), other.pem());
    let port = model.address.port();
    for (what, ca, (certificate, key), status) in [
        ("a server of somebody else", &strangers, &mine, 502),
        ("a certificate of somebody else", &ours, &theirs, 502),
        ("the right ones", &ours, &mine, 200),
        ("another authority later", &strangers, &mine, 502),
        ("the right ones again", &ours, &mine, 200),
    ] {
        let secrets = [
            ("authority", "ca.crt", ca.as_str()),
            ("certificate", "tls.crt", certificate.as_str()),
            ("certificate", "tls.key", key.as_str()),
        ];
        bench.serve(behind_tls(&bench, port, &secrets));
        let answer = bench.chat(json!({})).await;
        assert_eq!(answer.status(), status, "{what}: {}", answer.text().await.unwrap());
    }
    assert_eq!(model.asked().len(), 2, "nobody else was told anything");
    // Without one of the Secrets nobody is asked.
    let secrets = [("authority", "ca.crt", ours.as_str())];
    bench.serve(ReleaseInput { name: "new".into(), ..behind_tls(&bench, port, &secrets) });
    assert_eq!(bench.chat(json!({})).await.status(), 404);
}
