"The checked-in twin is what its recipe says: annotations to the byte, pictures as near as an encoder leaves them."
import numpy as np
import pytest

from vlmtemporal import twin
from vlmtemporal.basics import BadInput, read_json, write_json
from vlmtemporal.openpack import annotation_path, sessions, video_path, write_annotation
from vlmtemporal.operations import get_taxonomy
from vlmtemporal.twin import MOCK, make_twin
from vlmtemporal.twin_drawing import render
from vlmtemporal.twin_script import session_script

PEOPLE = [f'U{100 + i:04d}' for i in range(1, MOCK['subjects'] + 1)]


def script_of(subject):
    return session_script(MOCK['seed'], subject, 'S0100', MOCK['boxes'], MOCK['taxonomy'])


def test_recipe(mock):
    found = read_json(mock/'twin.json')
    assert {name: found[name] for name in MOCK} == MOCK


def test_a_recipe_of_an_older_version_is_the_same_twin(mock, tmp_path):
    "What it does not say has its default; what is not known makes it another one."
    recipe = read_json(mock/'twin.json')
    write_json(tmp_path/'twin.json', {k: v for k, v in recipe.items() if k not in ('crf', 'size')})
    twin._claim(tmp_path, recipe)
    with pytest.raises(BadInput, match='another twin'): twin._claim(tmp_path, recipe | dict(crf=20))
    write_json(tmp_path/'twin.json', recipe | dict(weather='rain'))
    with pytest.raises(BadInput, match='another twin'): twin._claim(tmp_path, recipe)


@pytest.mark.parametrize('subject', PEOPLE)
def test_annotations_are_the_script(mock, tmp_path, subject):
    script = script_of(subject)
    write_annotation(tmp_path/'S0100.csv', subject, 'S0100', script.rows, script.start, get_taxonomy(script.taxonomy))
    assert (tmp_path/'S0100.csv').read_bytes() == annotation_path(mock, subject, 'S0100').read_bytes()
    assert video_path(mock, subject, 'S0100', script.start).is_file()


def test_videos_are_the_pictures(mock):
    for session in sessions(mock, PEOPLE[:2]):
        script, times = script_of(session.subject), [1., 20., 40.]
        decoded = session.open().read(session.open().nearest(times))
        for t, frame in zip(times, decoded, strict=True):
            apart = np.abs(frame.astype(int) - render(script, t)).mean()
            other = np.abs(frame.astype(int) - render(script, t + 10.)).mean()
            assert apart < 4 and apart < .7 * other, (session.subject, t, apart, other)


def test_a_picture_depends_on_nothing_drawn_before():
    script = script_of('U0103')
    first = render(script, 30., (160, 120))
    for subject in PEOPLE:
        for size in ((64, 48), (320, 180)):
            render(script_of(subject), 10., size)
    assert (render(script, 30., (160, 120)) == first).all()
    assert (render(script_of('U0103'), 30., (160, 120)) == first).all()


def test_a_cut_off_run_is_taken_up(tmp_path, monkeypatch):
    "Of a run that stopped after the first of two sessions, the second call writes the second alone."
    written = []
    def write(script, root, size, crf):
        if fails and script.subject == 'U0102': raise KeyboardInterrupt
        written.append(script.subject)
    monkeypatch.setattr(twin, '_write_video', write)
    fails = True
    with pytest.raises(KeyboardInterrupt): make_twin(tmp_path/'cut', subjects=2, boxes=1)
    fails = False
    make_twin(tmp_path/'cut', subjects=2, boxes=1)
    assert written == ['U0101', 'U0102']
    assert all(annotation_path(tmp_path/'cut', subject, 'S0100').is_file() for subject in written)
    with pytest.raises(BadInput, match='another twin'): make_twin(tmp_path/'cut', seed=1, subjects=2, boxes=1)
