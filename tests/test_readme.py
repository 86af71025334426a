"""The README says what the code does: its messages decode, its tables are the generated ones."""

from __future__ import annotations

import re
from pathlib import Path

from models.domain.events import EventContract, Forget, Hide, Impression, Interaction, Search
from streams.metrics import Metrics
from streams.settings import settings_markdown
from streams.trainer_metrics import TrainerMetrics

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _examples() -> list[bytes]:
    blocks = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    return [line.encode() for block in blocks for line in block.strip().splitlines()]


def test_every_event_of_the_readme_decodes_and_every_type_is_shown() -> None:
    contract = EventContract()
    events = [contract.decode_event(line) for line in _examples() if b'"type"' in line]
    assert {type(event) for event in events} == {Interaction, Search, Hide, Impression, Forget}


def test_the_item_the_request_and_the_list_of_the_readme_decode() -> None:
    contract = EventContract()
    others = [line for line in _examples() if b'"type"' not in line]
    item, request, made = others
    assert contract.decode_item(item).title == "Heat (1995)"
    assert contract.decode_request(request).k == 10
    assert contract.encode(contract.decode_recommendation(made)) == made


def test_the_tables_of_the_readme_are_the_generated_ones() -> None:
    assert settings_markdown() in README
    assert Metrics().markdown() in README
    assert TrainerMetrics().markdown() in README


def test_every_link_of_the_readme_leads_to_a_file() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
