"Annotation files as other programs save them: read right where they mean one thing, else one sentence with the line."
import csv, shutil
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from vlmtemporal.basics import BadInput
from vlmtemporal.metrics import openpack_f1, second_table
from vlmtemporal.openpack import annotation_path, labels_1hz, read_annotation, session_of, sessions, write_annotation
from vlmtemporal.operations import OPENPACK, TAXONOMIES, Operation, Segment, Taxonomy


@pytest.fixture
def place(mock, tmp_path):
    "A data set of one session, whose annotation may be overwritten."
    shutil.copytree(mock/'U0108', tmp_path/'U0108')
    return annotation_path(tmp_path, 'U0108', 'S0100')


def changed(text, **fields):
    "The text with other values in line 4."
    lines = text.splitlines()
    header, values = lines[0].split(','), lines[3].split(',')
    for name, value in fields.items(): values[header.index(name)] = value
    return '\n'.join([*lines[:3], ','.join(values), *lines[4:]]) + '\n'


SAME = {
    'a mark of UTF-8': lambda t: t.encode('utf-8-sig'),
    'UTF-16 with its mark': lambda t: t.encode('utf-16'),
    'UTF-16, the other way round': lambda t: b'\xfe\xff' + t.encode('utf-16-be'),
    'semicolons': lambda t: t.replace(',', ';'),
    'semicolons, decimal commas': lambda t: t.replace(',', ';').replace('.', ','),
    'tabs': lambda t: t.replace(',', '\t'),
    'line ends of Windows': lambda t: t.replace('\n', '\r\n'),
    'every field quoted': lambda t: '\n'.join(','.join(f'"{f}"' for f in line.split(',')) for line in t.splitlines()),
    'capitals and blanks in the header': lambda t: t.replace('user,session', 'User, Session', 1),
    'blank lines': lambda t: '\n' + t.replace('\n', '\n\n') + ',,,,,,,,\n',
    'lines in another order': lambda t: '\n'.join(t.splitlines()[:1] + t.splitlines()[:0:-1]),
    'no names': lambda t: changed(t, operation=''),
    'names in capitals': lambda t: changed(t, operation=t.splitlines()[3].split(',')[5].upper().replace(' ', '_')),
    'no user and session': lambda t: changed(t, user='', session=''),
    'ids as pandas writes them': lambda t: changed(t, id=t.splitlines()[3].split(',')[4] + '.0', box='1.0'),
    'a remark over two lines': lambda t: changed(t, actions='"組み立て\nand more"'),
}


@pytest.mark.parametrize('how', SAME)
def test_what_means_one_thing_is_read_right(how, place):
    before, file = read_annotation(place), SAME[how](place.read_text())
    place.write_bytes(file if isinstance(file, bytes) else file.encode())
    assert read_annotation(place) == before


REFUSED = {
    'an id and another name': (lambda t: changed(t, id='10300', operation='Pack'),
                               "line 4: the id 10300 is Tape, but the operation is 'Pack'"),
    'an id and a name that nobody knows': (lambda t: changed(t, id='10300', operation='Dance'), 'line 4: the id 10300'),
    'another user': (lambda t: changed(t, user='U0101'), "line 4: the user 'U0101' contradicts .* U0108's"),
    'another session': (lambda t: changed(t, session='S0200'), "line 4: the session 'S0200' contradicts .* S0100's"),
    'an unknown id': (lambda t: changed(t, id='77'), 'line 4: unknown operation 77'),
    "OpenPack's second null": (lambda t: changed(t, id='8200'), 'line 4: unknown operation 8200'),
    'a field of 200,000 letters': (lambda t: changed(t, actions='x'*200_000), 'line 4: cannot be read as CSV'),
    'a quotation mark left open': (lambda t: changed(t, operation='"Tape'), 'line 4: cannot be read as CSV'),
    'a NUL byte': (lambda t: changed(t, actions='a\0b'), 'line 4: holds a NUL byte'),
    'UTF-16 without its mark': (lambda t: t.encode('utf-16-le'), 'line 1: holds a NUL byte; save it as CSV in UTF-8'),
    'latin-1': (lambda t: changed(t, actions='é').encode('latin-1'), 'line 4: byte 0xe9 cannot be read as utf-8'),
    'Shift-JIS': (lambda t: changed(t, actions='組立').encode('shift-jis'), 'line 4: byte 0x91 cannot be read'),
    'a picture': (lambda t: b'\x89PNG\r\n\x1a\n' + bytes(range(256)), 'line 1: byte 0x89 cannot be read'),
    'no header': (lambda t: t.split('\n', 1)[1], 'line 1: the header is missing; .*user,session'),
    'nothing at all': (lambda t: ' \n\n', 'is empty'),
    'NaN for a time': (lambda t: changed(t, start='nan'), "line 4: 'nan' is no time"),
    'no time': (lambda t: changed(t, end=''), "line 4: '' is no time"),
    'a year of another age': (lambda t: changed(t, end='2922-03-29 09:59:20+09:00'), 'line 5: the segment overlaps'),
    'a last year of another age': (lambda t: t.rstrip().rsplit(',2022', 1)[0] + ',2922-03-29 10:00:00+09:00,\n',
                                   r'line \d+: the operation ends \d+ hours after the first .* at most 24 hours'),
    'a box of less than nothing': (lambda t: changed(t, box='-5'), "line 4: the box '-5' is no whole number"),
    'a box with a fraction': (lambda t: changed(t, box='1.5'), "line 4: the box '1.5' is no whole number"),
    'an id of 5,000 digits': (lambda t: changed(t, id='9'*5000), "line 4: the id '9999.*' is no whole number"),
}


@pytest.mark.parametrize('how', REFUSED)
def test_what_could_mean_anything_is_refused(how, place, tmp_path):
    "One line with the file and the line of it, from whatever asks for the session."
    change, said = REFUSED[how]
    file = change(place.read_text())
    place.write_bytes(file if isinstance(file, bytes) else file.encode())
    recording = next(tmp_path.glob('U0108/kinect/color-masked/videos/S0100/*.mp4'))
    for ask in (lambda: read_annotation(place), lambda: sessions(tmp_path), lambda: session_of(recording)):
        with pytest.raises(BadInput, match=said) as e: ask()
        message = str(e.value)
        assert message.startswith(str(place)) and len(message.splitlines()) == 1
        assert len(message) < 300 + len(str(place))


PACKED = [(1, Segment('Picking', 0, 4)), (1, Segment('Null', 4, 9)), (1, Segment('Close Box', 9, 12))]


def packed(tmp_path, *changes):
    "A file of OpenPack's own ids, changed."
    write_annotation(file := tmp_path/'S.csv', 'U0101', 'S0100', PACKED, 1648531511.03, OPENPACK)
    text = file.read_text()
    for old, new in changes: text = text.replace(old, new)
    file.write_text(text)
    return file


@pytest.mark.parametrize('name', ['Null', 'Exception', ''])
def test_the_second_null_of_openpack_is_null(name, tmp_path):
    taxonomy, rows = read_annotation(packed(tmp_path, (',8100,Null,', f',8200,{name},')))
    assert taxonomy == OPENPACK and rows == read_annotation(packed(tmp_path))[1]


def test_an_id_and_a_name_that_are_of_one_taxonomy(tmp_path, monkeypatch):
    "The names say whose ids they are; an id under a name that no taxonomy has for it is refused."
    mine = Taxonomy('mine', (Operation(100, 'Cut'), Operation(500, 'Fold'), Operation(8100, 'Nothing'),
                             Operation(8200, 'Other')), 'Nothing')
    monkeypatch.setitem(TAXONOMIES, 'mine', mine)
    cut = (',100,Picking,', ',100,Cut,'), (',500,Close Box,', ',500,Fold,'), (',8100,Null,', ',8100,Nothing,')
    taxonomy, rows = read_annotation(packed(tmp_path, *cut))
    assert taxonomy is mine and [r.operation for r in rows] == ['Cut', 'Nothing', 'Fold']
    own = read_annotation(packed(tmp_path, (',8100,Null,', ',8200,Other,'), *cut[:2])) # an id that is null elsewhere
    assert own[0] is mine and [r.operation for r in own[1]] == ['Cut', 'Other', 'Fold']
    assert read_annotation(packed(tmp_path))[0] is OPENPACK
    for name in ('Cut', 'Close Box', 'Dance'):
        with pytest.raises(BadInput, match=f"line 2: the id 100 is Picking, but the operation is '{name}'"):
            read_annotation(packed(tmp_path, (',100,Picking,', f',100,{name},')))


def test_the_official_labels_of_a_second_are_met(shared):
    "All 1,404 rows of the sample, gaps included, and the challenge's score of the annotation is all it can be."
    session, = sessions(shared/'openpack-sample')
    there = session.annotation.parents[1]/'openpack-operations-1hz'/'S0500.csv'
    official = {int(r['unixtime'])//1000: int(r['id']) for r in csv.DictReader(there.open())}
    seconds, labels = labels_1hz(session)
    ours = dict(zip(seconds.tolist(), (OPENPACK.operations[i].id for i in labels)))
    assert len(official) == 1404 and {t: ours[t] for t in official} == official
    assert min(ours) == min(official) and max(ours) - max(official) == 3 # nobody knows why theirs ends before the work
    table = second_table(session.segments, session)
    assert table.sum() == 1407 == table.diagonal().sum() and openpack_f1(table, OPENPACK) == 1


@pytest.mark.parametrize('seed', range(3))
def test_the_score_is_that_of_the_challenge(seed, mock):
    "As openpack-toolkit computes it: null of the truth dropped, null that is predicted a miss, all others alike."
    g = np.random.default_rng(seed)
    session = sessions(mock)[0]
    names = session.taxonomy.names
    null = session.taxonomy.null
    session = replace(session, segments=tuple(replace(s, operation=null) if g.random() < .2 else s
                                              for s in session.segments))
    seconds, true = labels_1hz(session)
    guess = np.where(g.random(len(true)) < .6, true, g.integers(0, len(names), len(true)))
    predicted = [Segment(names[i], t + .5 - session.start, t + 1.5 - session.start) for t, i in zip(seconds, guess)]
    kept = true != session.taxonomy.index(null)
    others = [i for i, name in enumerate(names) if name != null]
    def differ(predicted):
        official = f1_score(true[kept], guess[kept], labels=others, average='macro', zero_division=0)
        return abs(openpack_f1(second_table(predicted, session), session.taxonomy) - official)
    assert 0 < kept.mean() < 1 and differ(predicted) < 1e-12
    guess[20:30] = guess[19] # the toolkit fills what is missing from the second before
    assert differ(predicted[:20] + predicted[30:]) < 1e-12
