"""The files of the corpus belong together."""

from tests.corpus.exchanges import ROOT


def test_every_answer_has_its_expectation_and_every_expectation_its_answer() -> None:
    for folder, data in (("answers", "*.http"), ("requests", "*.json")):
        found = {path.with_suffix("") for path in (ROOT / folder).rglob(data)}
        told = {path.with_suffix("") for path in (ROOT / folder).rglob("*.toml")}
        assert found == told != set()
