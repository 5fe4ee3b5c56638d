"""What a query of Prometheus names: metrics, labels, and the words that labels must have."""

import re

WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


class Named:
    def __init__(self, query: str):
        self.labels: set[str] = set()
        # Each word that a label is compared with; what any value matches is none.
        self.values: set[tuple[str, str]] = set()
        for inside in re.findall(r"\{(.*?)\}", query):
            for label, value in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"(.*?)"', inside):
                self.labels.add(label)
                self.values |= {(label, word) for word in value.split("|") if word not in ("", ".*")}
        rest = re.sub(r'\{.*?\}|\[.*?\]|"[^"]*"', " ", query)
        def clause(found: re.Match) -> str:
            self.labels.update(re.findall(r"\w+", found[1]))
            return " "
        rest = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\((.*?)\)", clause, rest)
        names = re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", rest)
        self.metrics = set(names) - WORDS
