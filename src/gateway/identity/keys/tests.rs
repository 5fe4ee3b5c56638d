use axum::http::HeaderMap;

use super::*;
use crate::gateway::identity::Identities;

const KEY: &str = "0123456789abcdef01234567";

fn fields(pairs: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect()
}

fn read(owner: Owner, pairs: &[(&str, &str)]) -> Result<ClientKey, KeyError> {
    ClientKey::read(owner, "a", &fields(pairs))
}

fn tenant(named: &str) -> Owner {
    Owner::Tenant(named.parse().unwrap())
}

#[test]
fn a_secret_says_who_may_use_which_routes() {
    let pairs = [
        ("key", KEY),
        ("routes", "support-*, sales"),
        ("team", "t"),
        ("permissions", "force,score"),
    ];
    let client = read(Owner::Gateway, &pairs).unwrap().client();
    assert_eq!((client.caller.name.as_str(), client.caller.team.as_str()), ("a", "t"));
    assert!(client.may_force && client.may_score);
    for (route, allowed) in [
        ("support-answer", true),
        ("support-", true),
        ("support", false),
        ("sales", true),
        ("sales2", false),
        ("", false),
    ] {
        assert_eq!(client.grant.covers("any", route), allowed, "{route}");
    }
}

#[test]
fn a_tenants_key_reaches_no_further_than_its_namespace_whatever_it_says() {
    let client = read(tenant("shop"), &[("key", KEY), ("routes", "*")]).unwrap().client();
    assert_eq!((client.caller.name.as_str(), client.caller.team.as_str()), ("shop/a", "shop"));
    assert!(client.grant.covers("shop", "any-route"));
    assert!(!client.grant.covers("support", "any-route"));
}

/// What a Secret can say, in the hands of a tenant that wants to be somebody else.
#[test]
fn a_tenants_key_is_of_no_team_that_it_was_not_permitted_and_stays_one_caller() {
    let named = |owner, team: &str| {
        let pairs =
            [("key", KEY), ("routes", "*"), ("team", team), ("permissions", "force, score")];
        read(owner, &pairs).map(|key| key.client())
    };
    let error = named(tenant("shop"), "support").unwrap_err();
    assert!(matches!(&error, KeyError::Team { named, .. } if named == "support"), "{error}");
    assert!(named(tenant("shop=web+api"), "shop").is_err());
    for (owner, team) in [("shop", "shop"), ("shop=web+api", "api"), ("shop=support", "support")] {
        let client = named(tenant(owner), team).unwrap();
        assert_eq!((client.caller.team.as_str(), client.caller.party.as_str()), (team, "ns/shop"));
        // What it may choose and score are its own routes.
        assert!(client.may_force && client.may_score && !client.may_use("support", "r"));
    }
    // Who runs the gateway names any.
    assert_eq!(named(Owner::Gateway, "support").unwrap().caller.team, "support");
}

#[test]
fn what_is_no_client_key_says_what_to_do_and_never_the_key() {
    let long = "x".repeat(513);
    for (pairs, expected) in [
        (vec![("routes", "*")], KeyError::Field("key")),
        (vec![("key", KEY)], KeyError::Field("routes")),
        (vec![("key", "0123456789abcdef0123456"), ("routes", "*")], KeyError::Length(23)),
        (vec![("key", long.as_str()), ("routes", "*")], KeyError::Length(513)),
        (vec![("key", "0123456789 abcdef0123456789"), ("routes", "*")], KeyError::Characters),
        (
            vec![("key", KEY), ("routes", "*"), ("permissions", "force, admin")],
            KeyError::Permission("admin".to_owned()),
        ),
    ] {
        let error = read(Owner::Gateway, &pairs).unwrap_err();
        assert_eq!(error, expected);
        assert!(!error.to_string().contains(&KEY[..8]), "{error}");
    }
    assert!(!format!("{:?}", read(Owner::Gateway, &[("key", KEY), ("routes", "*")])).contains(KEY));
}

#[test]
fn nobody_takes_over_a_key_of_the_gateways_own() {
    let own = read(Owner::Gateway, &[("key", KEY), ("routes", "sales")]).unwrap();
    let theirs = read(tenant("a-first-by-name"), &[("key", KEY), ("routes", "*")]).unwrap();
    for keys in [vec![own.clone(), theirs.clone()], vec![theirs, own]] {
        let (keys, doubles) = Keys::new(keys);
        assert_eq!(keys.find(&digest(KEY)).unwrap().caller.name, "a");
        assert_eq!(doubles, ["a-first-by-name/a"]);
    }
}

#[test]
fn a_key_is_taken_from_each_of_three_headers_and_from_no_other() {
    let identities = Identities::default();
    identities
        .set_keys(Keys::new([read(Owner::Gateway, &[("key", KEY), ("routes", "*")]).unwrap()]).0);
    let bearer = format!("Bearer {KEY}");
    let small = format!("bearer  {KEY} ");
    let basic = format!("Basic {KEY}");
    for (header, value, answer) in [
        ("authorization", bearer.as_str(), Ok("a")),
        ("authorization", small.as_str(), Ok("a")),
        ("api-key", KEY, Ok("a")),
        ("x-api-key", KEY, Ok("a")),
        ("authorization", basic.as_str(), Err("missing_api_key")),
        ("authorization", "Bearer ", Err("missing_api_key")),
        ("authorization", KEY, Err("missing_api_key")),
        ("x-serinus-key", KEY, Err("missing_api_key")),
        ("api-key", "", Err("invalid_api_key")),
        ("api-key", "0123456789abcdef01234568", Err("invalid_api_key")),
        ("authorization", "Bearer eyJhbGciOiJub25lIn0.e30.", Err("invalid_api_key")),
    ] {
        let headers: HeaderMap =
            [(header.parse().unwrap(), value.parse().unwrap())].into_iter().collect();
        let found = identities.authenticate(&headers);
        let found = found.as_ref().map(|c| c.as_ref().unwrap().caller.name.as_str());
        assert_eq!(found.map_err(|e| e.code), answer, "{header}: {value}");
    }
}

#[test]
fn nobody_is_admitted_before_keys_are_known_and_everybody_only_when_it_is_off() {
    let mut headers = HeaderMap::new();
    assert_eq!(Identities::default().authenticate(&headers).unwrap_err().status, 401);
    assert_eq!(Identities::off().authenticate(&headers), Ok(None));
    headers.insert("api-key", KEY.parse().unwrap());
    assert_eq!(Identities::default().authenticate(&headers).unwrap_err().status, 401);
}

#[test]
fn headers_that_are_printed_do_not_tell_a_key() {
    for header in ["authorization", "api-key", "x-api-key"] {
        let mut headers: HeaderMap =
            [(header.parse().unwrap(), KEY.parse().unwrap())].into_iter().collect();
        crate::gateway::identity::conceal(&mut headers);
        assert!(!format!("{headers:?}").contains(KEY), "{header}");
    }
}
