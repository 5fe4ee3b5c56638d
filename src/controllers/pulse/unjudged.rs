//! How releases that are not judged are named to gateways, in one line of a bounded length.
//!
//! Whoever may write releases in one namespace can have any number of them that can not be
//! written. They must not take the judge from others: a canary of another namespace goes on. So
//! beyond [`Pulse::MOST`] releases the namespaces with the most of them are named as a whole,
//! and the others one by one. The harm stays in the namespaces where it began. Only with more
//! namespaces than fit into the line can nobody tell the rest apart, and no leader asks.

use std::collections::BTreeMap;

use super::Pulse;
use crate::signals::{index::Named, report::Unjudged};

/// Names of namespaces have so many bytes together at most: 96 of the longest, some hundreds of
/// usual ones. With [`Pulse::MOST`] releases of the longest names (127 bytes and a comma) and the
/// other headers that stays below what a gateway reads of a head (16 KiB).
const NAMESPACES: usize = 6 << 10;

/// The releases as gateways are told of them; none when there are too many to tell apart.
pub(super) fn named<'a>(releases: impl IntoIterator<Item = &'a Named>) -> Option<Unjudged> {
    let mut by_namespace = BTreeMap::<&str, Vec<&Named>>::new();
    for release in releases {
        by_namespace.entry(&release.namespace).or_default().push(release);
    }
    let mut groups: Vec<_> = by_namespace.into_iter().collect();
    groups.sort_by_key(|(namespace, releases)| (releases.len(), *namespace));
    let (mut unjudged, mut bytes) = (Unjudged::default(), 0);
    for (namespace, releases) in groups {
        let left = Pulse::MOST - unjudged.releases.len();
        if releases.len() > left {
            bytes += namespace.len() + 1;
            unjudged.namespaces.insert(namespace.to_owned());
        }
        // Gateways of the version before read no namespaces, but these.
        unjudged.releases.extend(releases.iter().take(left).map(|release| release.key()));
    }
    (bytes <= NAMESPACES).then_some(unjudged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::report::{Mark, Wanted};

    /// What a gateway reads of a head (`gateway::limits`).
    const HEAD: usize = 16 << 10;

    fn releases(namespace: &str, count: usize) -> Vec<Named> {
        (0..count).map(|i| Named::new(namespace, format!("r{i:062}"))).collect()
    }

    #[test]
    fn releases_are_named_one_by_one_as_long_as_that_is_possible() {
        assert_eq!(named([]), Some(Unjudged::default()));
        let all = [releases("a", 3), releases("b", Pulse::MOST - 3)].concat();
        let told = named(&all).unwrap();
        assert!(told.namespaces.is_empty());
        assert!(told.releases.iter().eq(&all.iter().map(Named::key).collect::<Vec<_>>()));
    }

    #[test]
    fn a_namespace_with_any_number_of_them_takes_the_judge_from_no_other() {
        for count in [Pulse::MOST + 1, 10_000] {
            let all = [releases("a", 1), releases("m", count), releases("z", 2)].concat();
            let told = named(&all).unwrap();
            assert_eq!(told.namespaces, ["m".to_owned()].into());
            for release in &all {
                assert!(told.has(&release.key()), "{release:?}");
            }
            for other in [releases("a", 2), releases("b", 1), releases("z", 3)] {
                assert!(!told.has(&other[other.len() - 1].key()));
            }
            // A gateway that does not read namespaces gets as many as the version before told.
            assert_eq!(told.releases.len(), Pulse::MOST);
            assert!(told.releases.contains(&all[0].key()));
        }
    }

    /// The rest of the head is for what proxies and the like add.
    #[test]
    fn the_longest_line_is_one_that_a_gateway_reads() {
        let namespace = |i: usize| format!("n{i:062}");
        let most = NAMESPACES / 64;
        let many = |count| {
            let each = (0..count).flat_map(|i| releases(&namespace(i), Pulse::MOST + 1));
            named(&each.collect::<Vec<_>>())
        };
        let unjudged = many(most).unwrap();
        assert_eq!((unjudged.namespaces.len(), unjudged.releases.len()), (most, Pulse::MOST));
        let since = Some(Mark { instance: "0123456789abcdef".to_owned(), at: u64::MAX });
        let line = Wanted { since, unjudged }.to_string();
        assert!(line.len() + 1024 <= HEAD, "{}", line.len());
        assert_eq!(many(most + 1), None, "nobody can tell the rest apart");
    }
}
