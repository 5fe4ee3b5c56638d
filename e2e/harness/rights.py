"""What deploy/ permits the service accounts of operators and gateways."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from .audit import Use

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
# Roles that people bind, namespace by namespace (docs/install.md, docs/security.md).
BY_HAND = {
    "serinus-operator-serving": "serinus-operator",
    "serinus-gateway-api-keys": "serinus-gateway",
    "serinus-gateway-client-keys": "serinus-gateway",
}
# What people have in the namespaces that they may view or edit.
OF_PEOPLE = {"serinus-view", "serinus-edit"}


class Grant(NamedTuple):
    account: str
    role: str
    namespace: str | None  # None: in every namespace in which the role is bound
    group: str
    resource: str
    verb: str
    names: tuple[str, ...]

    def covers(self, use: Use) -> bool:
        return (self.account, self.group, self.resource, self.verb) == (
            use.account, use.group, use.resource, use.verb) and (
            self.namespace in (None, use.namespace)) and (not self.names or use.name in self.names)

    def __str__(self) -> str:
        only = f" {','.join(self.names)}" if self.names else ""
        return f"{self.account}: {self.verb} {self.group or 'core'}/{self.resource}{only} (role {self.role})"


def granted() -> list[Grant]:
    found = [o for file in ("rbac-operator.yaml", "rbac-gateway.yaml", "rbac-users.yaml")
             for o in yaml.safe_load_all((DEPLOY / file).read_text())]
    accounts = {name: {account} for name, account in BY_HAND.items()}
    for binding in found:
        if binding["kind"].endswith("RoleBinding") and binding["kind"] not in ("ClusterRole", "Role"):
            for subject in binding["subjects"]:
                accounts.setdefault(binding["roleRef"]["name"], set()).add(subject["name"])
    grants = []
    for role in found:
        name = role["metadata"]["name"]
        if role["kind"] not in ("ClusterRole", "Role") or name in OF_PEOPLE:
            continue
        for account in accounts[name]:
            for rule in role["rules"]:
                grants += [Grant(account, name, role["metadata"].get("namespace"), group, resource, verb,
                                 tuple(rule.get("resourceNames", ())))
                           for group in rule["apiGroups"] for resource in rule["resources"]
                           for verb in rule["verbs"]]
    assert not [g for g in grants if "*" in (g.group, g.resource, g.verb)], "a wildcard permits what nobody has read"
    return grants


def unused(uses: Iterable[Use]) -> list[str]:
    """Grants that no request needed. One that a narrower grant permits, too, is no use of the wider."""
    grants, needed = granted(), set()
    for use in uses:
        covering = [g for g in grants if g.covers(use)]
        needed.update([g for g in covering if g.names] or covering)
    return [str(g) for g in grants if g not in needed]


def another_operator(cluster, account: str, without: str) -> None:
    """A service account with the rights of the operator's, but for a resource."""
    mine = {"metadata": {"name": account, "namespace": "serinus-system"}}
    found = [{"apiVersion": "v1", "kind": "ServiceAccount", **mine}]
    for o in yaml.safe_load_all((DEPLOY / "rbac-operator.yaml").read_text()):
        if o["kind"] not in ("ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding"):
            continue
        o["metadata"]["name"] += f"-of-{account}"
        rules = [{**rule, "resources": [r for r in rule["resources"] if r != without]}
                 for rule in o.get("rules", [])]
        if rules:
            o["rules"] = [rule for rule in rules if rule["resources"]]
        else:
            o["roleRef"]["name"] += f"-of-{account}"
            o["subjects"] = [{**s, "name": account} for s in o["subjects"] if s["name"] == "serinus-operator"]
        found.append(o)
    cluster.apply(found)


@contextmanager
def taken(cluster, resource: str, role: str = "serinus-operator") -> Iterator[None]:
    """Takes a resource out of the roles of that name, and gives it back in the end."""
    whole = (DEPLOY / "rbac-operator.yaml").read_text()
    found = [o for o in yaml.safe_load_all(whole) if o]
    rules = [rule for o in found if o["kind"] in ("ClusterRole", "Role") and o["metadata"]["name"] == role
             for rule in o["rules"] if resource in rule["resources"]]
    assert rules, f"{role} has no right to {resource}"
    for rule in rules:
        rule["resources"].remove(resource)
    for role_ in found:
        if "rules" in role_:
            role_["rules"] = [rule for rule in role_["rules"] if rule["resources"]]
    cluster.apply(found)
    try:
        yield
    finally:
        cluster.apply(whole)
