"Real label files of other people's tools: each is read to the figures that were taken from it by hand."
import json
from functools import cache
from itertools import combinations

import pytest

from conftest import ROOT
from vlmtemporal.basics import BadInput
from vlmtemporal.labels import read_labels

EXPORTS = ROOT.parent/'shared'/'label-exports'
if not (EXPORTS/'expected.json').exists():
    pytest.skip('the exported label files are not on this machine', allow_module_level=True)
EXPECTED = json.loads((EXPORTS/'expected.json').read_text())

WITHOUT_LABELS = ('epic/01-epic55-test-s2.csv', 'epic/03-epic100-uda-source-test.csv', 'handcsv/06-start-duration.xlsx')
COUNTED_FROM_1 = ('framewise/04-50salads-ranges-rgb-01-1.txt',) # as `expected.json` quotes it
IN_FILES_ORDER = ('activitynet', 'epic', 'handcsv', 'framewise', 'labelstudio', 'via3')


def with_figure(*keys):
    "The files for which one of these is known."
    return pytest.mark.parametrize('name', [name for name, want in EXPECTED.items() if set(keys) & set(want)])


@cache
def read(name):
    "The file, its labels given where it has none."
    return read_labels(EXPORTS/name, columns={'label': '=work'} if name in WITHOUT_LABELS else None)


@with_figure('sha256')
def test_the_format_is_found(name):
    folder = name.partition('/')[0]
    formats = dict(tracks={'audacity', 'textgrid', 'srt', 'webvtt', 'csv'}, framewise={'framewise', 'mapping', 'csv'},
                   handcsv={'csv', 'xlsx', 'mapping', 'lengths'}, activitynet={'activitynet', 'thumos'})
    assert read(name).format in formats.get(folder, {folder})


@pytest.mark.parametrize('name', WITHOUT_LABELS)
def test_labels_are_asked_for(name):
    with pytest.raises(BadInput, match="no column holds labels .*'=NAME'"): read_labels(EXPORTS/name)


@with_figure('classes')
def test_classes(name):
    assert len(read(name).names) == EXPECTED[name]['classes'] and not read(name).rows


@with_figure('n')
def test_counts(name):
    want, found = EXPECTED[name], read(name)
    assert len(found.rows) == want.get('usable', want['n'] - want.get('zero_length', 0))
    points = sum(r.start == r.end for r in found.dropped)
    assert points >= want.get('zero_length', want.get('points', 0))
    if 'labels' in want: assert set(want['labels']) <= {r.name for r in found.rows}
    if want.get('unpaired'): assert any('no partner' in note for note in found.notes)


@with_figure('videos')
def test_recordings(name):
    found = read(name)
    assert len({r.recording for r in found.rows + found.dropped} or found.durations) == EXPECTED[name]['videos']


@with_figure('total_frames', 'total_units')
def test_frames(name):
    want, found = EXPECTED[name], read(name)
    assert found.unit == 'frames'
    assert sum(r.end - r.start for r in found.rows) == want.get('total_frames', want.get('total_units'))
    rows = sorted(found.rows, key=lambda r: r.start)
    for key, row in ('first_f', rows[0]), ('last_f', rows[-1]):
        if key in want: assert [row.start + (name in COUNTED_FROM_1), row.end] == want[key]


@with_figure('total')
def test_seconds(name):
    want = EXPECTED[name]
    rows = read(name).in_seconds(want.get('fps')).rows
    assert sum(r.end - r.start for r in rows) == pytest.approx(want['total'], abs=2e-3)
    for key, i in ('first', 0), ('last', -1):
        if key in want and name.partition('/')[0] in IN_FILES_ORDER:
            assert [rows[i].start, rows[i].end] == pytest.approx(want[key], abs=1e-3)


@with_figure('overlaps')
def test_overlaps(name):
    by_track = {}
    tracked = name.partition('/')[0] in ('elan', 'tracks') or name.endswith('.boris') # overlaps within one, that is
    for r in read(name).rows: by_track.setdefault((r.recording, r.track if tracked else ''), []).append(r)
    pairs = [pair for rows in by_track.values() for pair in combinations(rows, 2)]
    assert sum(min(a.end, b.end) - max(a.start, b.start) > 1e-6 for a, b in pairs) == EXPECTED[name]['overlaps']


def test_times_of_marks_and_captions():
    "Figures of rows that are set aside, and the words of captions."
    marks = read('tracks/11-premiere-markers-utf16-ru.csv').dropped
    assert (marks[0].start, marks[-1].start) == pytest.approx((568.768, 1610.843), abs=1e-3)
    cues = read('tracks/09-youtube-dl.vtt').rows
    assert [r.name for r in cues] == ['yeah', 'yeah what', *["this will happen is I'm telling"]*2]
    assert (cues[0].start, cues[0].end, cues[-1].end) == (286.07, 286.47, 305.4)
    sounds = read('tracks/01-audacity-labels.txt')
    assert (sounds.rows[-1].start, sounds.rows[-1].end) == pytest.approx((28.345312, 29.101334), abs=1e-6)
    assert len(sounds.labels) == 20 and sum(r.name == 'SIL' for r in sounds.rows) == 25


def test_frames_know_their_classes():
    breakfast = read('framewise/01-breakfast-P03_cam01_P03_cereals.txt')
    assert len(breakfast.names) == 50 and breakfast.names[0] == 'SIL'
    assert any("'SIL'" in note for note in breakfast.notes)
    cataract = read('handcsv/01-cataract101-semicolon-starts.csv')
    assert cataract.names[0] == 'Incision' and cataract.rates['269'] == 25 and len(cataract.recordings) == 101
    late = read('activitynet/03-thumos-segments-lists.json')
    assert any('after the recording' in note for note in late.notes) and set(late.rates.values()) > {24, 25}
