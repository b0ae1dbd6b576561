"What CONTRIBUTING.md shows is run: every block of Python, in under 15 lines each, and every file it names is there."
import re
from contextlib import ExitStack
from unittest.mock import patch

import pytest

from conftest import ROOT
from vlmtemporal import backbones, operations, samplers

TEXT = (ROOT/'CONTRIBUTING.md').read_text()
BLOCKS = dict(re.findall(r'^## Add a (.+?)$.*?^```python\n(.*?)^```$', TEXT, re.M | re.S))
REGISTRIES = (samplers.SELECTORS, samplers.SAMPLERS, operations.TAXONOMIES, backbones.BACKBONES)


def test_there_is_an_example_of_each(): assert list(BLOCKS) == ['sampler', 'taxonomy', 'model family']


@pytest.mark.parametrize('what', BLOCKS)
def test_an_example_runs(what):
    assert len(BLOCKS[what].splitlines()) < 15
    before = [dict(registry) for registry in REGISTRIES]
    with ExitStack() as stack:
        for registry in REGISTRIES: stack.enter_context(patch.dict(registry))
        exec(compile(BLOCKS[what], f'CONTRIBUTING.md, {what}', 'exec'), {})
        assert [dict(registry) for registry in REGISTRIES] != before, 'it adds something'
    assert [dict(registry) for registry in REGISTRIES] == before


def test_what_it_names_is_there():
    links, files = re.findall(r'\]\(([^)]+)\)', TEXT), re.findall(r'\b(?:nbs|tests)/\w+\.\w+', TEXT)
    assert len(files) > 5 and not [f for f in links + files if not (ROOT/f).exists()]
    targets = re.findall(r'^([\w-]+):', (ROOT/'Makefile').read_text(), re.M)
    assert set(re.findall(r'make ([\w-]+)', TEXT)) <= set(targets)


def test_the_readme_serves_after_it_has_shown_how():
    "Limits, containers and Spaces come after the page and the API that they are about."
    heads = re.findall(r'^## (.*)$', (ROOT/'README.md').read_text(), re.M)
    assert heads.index('Serving') == heads.index('A page and an API') + 1
