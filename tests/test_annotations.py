"Annotation files as other programs save them: read right where they mean one thing, else one sentence with the line."
import shutil

import pytest

from vlmtemporal.basics import BadInput
from vlmtemporal.openpack import annotation_path, read_annotation, session_of, sessions


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
