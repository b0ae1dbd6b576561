"What ARCHITECTURE.md says about costs is what its command prints; hours, prices and rates move it as they should."
import subprocess, sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT/'bench'))
from costs import Assumed, Bill, Prices, Rates # noqa: E402


def test_the_table_is_what_the_command_prints():
    said = subprocess.run([sys.executable, ROOT/'bench'/'costs.py'], capture_output=True, text=True, check=True).stdout
    text = (ROOT/'ARCHITECTURE.md').read_text()
    assert said.startswith('|') and said.count('\n') > 8
    assert said in text, 'put there what `python bench/costs.py` says'


def test_what_grows_with_what():
    def bill(hours=53, gpu='t4', labelled=53., **prices):
        return Bill(hours, Rates(), Assumed(labelled=labelled), Prices(**dict(gpu_hour=.35) | prices), gpu)
    one, many = bill(), bill(5300)
    assert many.analysis_hours == pytest.approx(100*one.analysis_hours) and many.training_hours == one.training_hours
    assert bill(5300, labelled=5300.).training_hours == pytest.approx(100*one.training_hours)
    steps = one.examples/16
    assert one.training_hours == pytest.approx(steps*(23 + 18 + 18)/3600)
    assert bill(gpu='h200').training_hours == pytest.approx(steps*(1.41 + 2*1.14)/3600)
    assert bill(gpu='h200').analysis_hours == pytest.approx(53*30/600)
    assert bill(gpu_hour=.7).money['training'] == pytest.approx(2*one.money['training'])
    assert one.bottleneck.startswith('training') and many.bottleneck.startswith('analysis')
    assert 'labels of' not in one.bottleneck and 'labels of 500,000 h' in bill(500_000).bottleneck
