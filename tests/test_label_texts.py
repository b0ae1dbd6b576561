"Label files that people and data sets write as text: read right where they mean one thing, else one sentence."
import datetime, io, json
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmtemporal.basics import BadInput
from vlmtemporal.label_rows import READERS, LabelFile
from vlmtemporal.label_texts import read_split
from vlmtemporal.labels import FORMATS, read_labels


@pytest.fixture
def put(tmp_path):
    "A file with this content."
    def write(content, name='labels.csv'):
        path = tmp_path/name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    return write


TABLE = 'video,start,end,label\nbox,0.5,2.25,fold\nbox,3,64.5,tape\n'
ROWS = [('box', 'fold', .5, 2.25), ('box', 'tape', 3, 64.5)]
SAME = {
    'plain': TABLE,
    'a mark of UTF-8': TABLE.encode('utf-8-sig'),
    'UTF-16 with its mark': TABLE.encode('utf-16'),
    'semicolons': TABLE.replace(',', ';'),
    'semicolons, decimal commas': TABLE.replace(',', ';').replace('.', ','),
    'tabs': TABLE.replace(',', '\t'),
    'bars': TABLE.replace(',', '|'),
    'quoted decimal commas': 'video,start,end,label\nbox,"0,5","2,25",fold\nbox,3,"64,5",tape\n',
    'line ends of Windows': TABLE.replace('\n', '\r\n'),
    'line ends of an old Mac': TABLE.replace('\n', '\r'),
    'blank lines': TABLE.replace('\n', '\n\n') + ',,,\n',
    'no line end at the end': TABLE.rstrip(),
    'clock times': 'video,start,end,label\nbox,0:00.5,0:02.25,fold\nbox,00:00:03,0:01:04.50,tape\n',
    'other words': 'Datei;Anfang;Ende;Tätigkeit\nbox;0,5;2,25;fold\nbox;3;64,5;tape\n',
    'camels': 'videoId,startTime,endTime,actionName\nbox,0.5,2.25,fold\nbox,3,64.5,tape\n',
    'Japanese': '動画,開始,終了,作業\nbox,0.5,2.25,fold\nbox,3,64.5,tape\n',
    'durations': 'video,onset,duration,label\nbox,0.5,1.75,fold\nbox,3,61.5,tape\n',
    'milliseconds': 'video,start_ms,end_ms,label\nbox,500,2250,fold\nbox,3000,64500,tape\n',
    'minutes': 'video,start (min),end (min),label\nbox,0.00833333333333333,0.0375,fold\nbox,0.05,1.075,tape\n',
    'columns in another order': 'label,end,id,start,video\nfold,2.25,1,0.5,box\ntape,64.5,2,3,box\n',
    'verb and noun': 'video,start,end,verb,noun\nbox,0.5,2.25,fold,\nbox,3,64.5,tape,\n',
    'action and object': 'video,start,end,action,object\nbox,0.5,2.25,fold,\nbox,3,64.5,,tape\n',
    'an export of ELAN': 'video\tBegin Time - hh:mm:ss.ms\tBegin Time - ss.msec\tEnd Time - hh:mm:ss.ms\t'
                         'End Time - ss.msec\tAnnotation\n'
                         'box\t00:00:00.500\t0.5\t00:00:02.250\t2.25\tfold\n'
                         'box\t00:00:03.000\t3.0\t00:01:04.500\t64.5\ttape\n',
    'a number of the class beside its name': 'video,start,end,label_id,label\nbox,0.5,2.25,7,fold\nbox,3,64.5,8,tape\n',
    'frames beside times': 'video,start_frame,start_time,end_frame,end_time,label\n'
                           'box,12,0.5,56,2.25,fold\nbox,75,3,9,64.5,tape\n',
    'remarks': '# made by hand\n' + TABLE,
    'a title': 'Recordings of Tuesday\n\n' + TABLE,
    'a title as a spreadsheet saves it': 'Recordings of Tuesday,,,\n,,,\n' + TABLE,
    'a header with a hash': '#' + TABLE,
    'no header': TABLE.partition('\n')[2],
    'a rest of empty columns': TABLE.replace('\n', ',,\n'),
}


@pytest.mark.parametrize('how', SAME)
def test_what_means_one_thing_is_read_right(how, put):
    found = read_labels(put(SAME[how]))
    assert found.format == 'csv' and found.unit == 'seconds'
    for row, (recording, name, start, end) in zip(found.rows, ROWS, strict=True):
        assert (row.recording, row.name) == (recording, name)
        assert row.start == pytest.approx(start) and row.end == pytest.approx(end) and 'line' in row.where


REFUSED = {
    'nothing': (b'', 'is empty'),
    'blanks': (b' \n\n', 'is empty'),
    'another encoding': ('start,end,label\n1,2,Schnüren\n'.encode('latin-1'), 'line 2: byte 0xfc cannot be read'),
    'a text where a time is': ('start,end,label\n1,2,a\n3,x,b\n', "line 3: 'x' is no time"),
    'no end in one line': ('start,end,label\n1,2,a\n3,,b\n', 'line 3: the end is missing'),
    'infinity': ('start,end,label\n1,inf,a\n', "line 2: 'inf' is no time"),
    'not a number in one place': ('start,end,label\n1,nan,a\n', "line 2: 'nan' is no time"),
    'huge': ('start,end,label\n1,1e99,a\n', "line 2: '1e99' is no time"),
    'before the start': ('start,end,label\n-3,2,a\n', "line 2: the start '-3' is before"),
    'a date': ('start,end,label\n2022-03-29 14:25:22,2022-03-29 14:25:25,a\n', 'is a date'),
    'no label': ('start,end\n1,2\n', "no column holds labels .*'=NAME'"),
    'no start': ('van,tot,wat\n1,2,a\n', 'no column holds starts .*van'),
    'more fields than the header': ('start,end,label\n1,2,a,b\n', 'line 2: 4 fields where the header has 3'),
    'an open quotation mark': ('start,end,label\n1,2,"a\n', 'line 2: cannot be read as CSV'),
    'a header alone': ('start,end,label\n', 'no column holds starts|holds no label'),
    'a timecode without a rate': ('start,end,label\n00:00:01:05,00:00:02:05,a\n', 'say the rate'),
    'a range that became a date': ('video,reach,pull\n1,1-17,18-30\n2,1-12,13-40\n3,Jan-9,10-11\n',
                                   "line 4: 'Jan-9' below 'reach' is no range"),
}


@pytest.mark.parametrize('what', REFUSED)
def test_what_cannot_be_read_is_one_sentence(what, put):
    content, sentence = REFUSED[what]
    with pytest.raises(BadInput, match=sentence) as e: read_labels(put(content))
    assert 'labels.csv' in str(e.value) and '\n' not in str(e.value)


def test_what_has_no_length_is_set_aside_and_said(put):
    found = read_labels(put('start,end,label\n1,2,a\n3,3,b\n5,4,c\n-1,-1,d\n,,e\n'))
    assert [r.name for r in found.rows] == ['a'] and [r.name for r in found.dropped] == ['b', 'c', 'd', 'e']
    said = ' '.join(found.notes)
    for part in 'line 3: 1 row has no length', 'line 4: 1 row ends before', 'line 5, line 6: 2 rows':
        assert part in said


def test_an_id_of_openpack_with_another_name_is_told(put):
    def notes(rows): return [n for n in read_labels(put(f'id,operation,start,end\n{rows}')).notes if 'OpenPack' in n]
    assert notes('100,Picking,0,2.5\n100,Dance,3,4\n') == [
        "the id 100 is Picking in OpenPack, the operation 'Dance' is read (line 3)"]
    assert notes('100,picking,0,2.5\n8200,Exception,3,4\n200,relocate_item_label,5,6\n') == []
    assert notes('1,Dance,0,2.5\n2,Sing,3,4\n') == [] # ids of something else


def test_columns_can_be_said(put):
    path = put('a,b,c,d,e\n10,20,fold,box,7\n30,40,tape,box,7\n')
    columns = dict(start='a', end='b', label='c+d', recording='e', unit='frames')
    found = read_labels(path, columns=columns)
    assert [(r.name, r.recording, r.start) for r in found.rows] == [('fold box', '7', 10), ('tape box', '7', 30)]
    assert found.unit == 'frames' and read_labels(path, fps=10, columns=columns).rows[0].start == 1
    assert read_labels(path, columns=dict(start=1, end=2, label='=work')).labels == ('work',)
    assert read_labels(path, columns={**columns, 'label': ['d', 'c']}).rows[0].name == 'box fold'
    assert read_labels(path, columns={**columns, 'last': 'included', 'first': 1}).rows[0].end == 20
    for wrong in dict(begin='a'), dict(start='z'), dict(start='a', end='b', label='c', unit='days'):
        with pytest.raises(BadInput): read_labels(path, columns=wrong)


FRAMES = {
    'each begins one after the last ends': ('start,end,label\n1,30,a\n31,90,b\n91,120,a\n', [0, 30, 30, 90, 90, 120]),
    'the same from 0': ('start,end,label\n0,30,a\n31,90,b\n91,120,a\n', [0, 31, 31, 91, 91, 121]),
    'each begins where the last ends': ('start_frame,end_frame,label\n0,30,a\n30,90,b\n', [0, 30, 30, 90]),
    'too large for seconds': ('start,end,label\n0,30000,a\n30010,90000,b\n', [0, 30000, 30010, 90000]),
}


@pytest.mark.parametrize('how', FRAMES)
def test_frames_are_known_as_such(how, put):
    content, numbers = FRAMES[how]
    found = read_labels(put(content))
    assert found.unit == 'frames' and [t for r in found.rows for t in (r.start, r.end)] == numbers
    with pytest.raises(BadInput, match='say the rate with --fps'): found.in_seconds()


def test_starts_last_until_the_next(put):
    put('VideoID;Frames;FPS\n7;100;25\n8;50;25\n9;1;25\n', 'set/videos.csv')
    put('Phase;Meaning\n1;Cut\n2;Sew\n', 'set/phases.csv')
    found = read_labels(put('VideoID;FrameNo;Phase\n7;10;1\n7;60;2\n8;0;2\n', 'set/annotations.csv'))
    rows = [(r.recording, r.name, r.start, r.end) for r in found.in_seconds().rows]
    assert rows == [('7', 'Cut', .4, 2.4), ('7', 'Sew', 2.4, 4), ('8', 'Sew', 0, 2)] and found.durations['7'] == 4
    alone = read_labels(put('VideoID;FrameNo;Phase\n7;10;1\n7;60;2\n8;0;2\n', 'other/annotations.csv'))
    assert len(alone.rows) == 1 and len(alone.dropped) == 2 and 'has no end' in ' '.join(alone.notes)


def test_a_row_a_frame_becomes_runs(put):
    lines = ['Frame\tPhase', *(f'{i}\t{"Cut" if i < 30 else "Sew"}' for i in range(50))]
    found = read_labels(put('\n'.join(lines), 'video01-phase.txt'))
    assert found.unit == 'frames'
    assert [(r.name, r.start, r.end) for r in found.rows] == [('Cut', 0, 30), ('Sew', 30, 50)]


def test_numbers_are_frames_where_their_rate_is_said(put):
    path = put('start,end,label\n10,20,a\n30,50,b\n')
    assert read_labels(path).unit == 'seconds' and 'whole numbers' in ' '.join(read_labels(path).notes)
    assert [(r.start, r.end) for r in read_labels(path, fps=10).rows] == [(1, 2), (3, 5)]


PICTURES = ('video_id,action_id,action_name,start_frame,end_frame\n1,5,take screw,00042.jpg,00050.jpg\n',
            '0,5,take screw,00042.jpg,00050.jpg\n1,6,turn screw,00051.jpg,00060.jpg\n')


@pytest.mark.parametrize('table', PICTURES)
def test_pictures_are_frames(table, put):
    found = read_labels(put(table))
    assert found.unit == 'frames' and (found.rows[0].name, found.rows[0].end - found.rows[0].start) in (
        ('take screw', 8), ('take screw', 9))


OBJECTS = ([dict(video='box', start=.5, end=2.25, label='fold'),
            dict(video='box', start='0:03', end='1:04.5', label='tape')],
           dict(box=[dict(segment=[.5, 2.25], action='fold'), dict(segment=[3, 64.5], action='tape')]))


@pytest.mark.parametrize('value', OBJECTS)
def test_objects_are_a_table(value, put):
    found = read_labels(put(json.dumps(value), 'a.json'))
    assert found.format == 'json' and [(r.recording, r.name, r.start, r.end) for r in found.rows] == ROWS


def test_a_line_an_object(put):
    found = read_labels(put('\n'.join(map(json.dumps, OBJECTS[0])), 'a.jsonl'))
    assert [(r.recording, r.name, r.start, r.end) for r in found.rows] == ROWS and 'line 2' in found.rows[1].where
    for wrong in '[1, 2]', '{"a": 1}', '[{"a": 1}]', '{"a": [1]}', '[]', '{"a": 1}\n{"b": }\n':
        with pytest.raises(BadInput): read_labels(put(wrong, 'b.json'))


def workbook(rows, formats=()):
    openpyxl = pytest.importorskip('openpyxl')
    book = openpyxl.Workbook()
    for row in rows: book.active.append(row)
    for place, form in formats: book.active[place].number_format = form
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def test_workbooks(put):
    rows = [['video', 'start', 'end', 'label'], ['box', .5, 2.25, 'fold'],
            ['box', datetime.time(0, 3), datetime.time(1, 4), '貼る'],
            ['box', datetime.time(0, 1, 10), datetime.timedelta(seconds=80), 'tape'], [None]*4]
    data = workbook(rows, [('B3', 'h:mm'), ('C3', 'h:mm'), ('B4', 'h:mm:ss')])
    found = read_labels(put(data, 'a.xlsx'))
    assert found.format == 'xlsx'
    assert [(r.name, r.start, r.end) for r in found.rows] == [('fold', .5, 2.25), ('貼る', 3, 64), ('tape', 70, 80)]
    wrong = put(workbook([*rows[:2], ['box', 'x', 2, 'a']]), 'b.xlsx')
    with pytest.raises(BadInput, match='row 3: .* is no time'): read_labels(wrong)
    for broken in data[:300], data[:-40], b'PK\3\4' + bytes(80), data.replace(b'xl/', b'xx/'):
        with pytest.raises(BadInput): read_labels(put(broken, 'c.xlsx'))


LISTS = {
    'a range and a name': ('1-30 SIL  \n31-150 take_bowl\n', 'ranges', [('SIL', 0, 30), ('take_bowl', 30, 150)]),
    'two numbers and a name': ('80 248 G1 \n249 334 G2 \n335 423 G3 \n', 'ranges',
                               [('G1', 79, 248), ('G2', 248, 334), ('G3', 334, 423)]),
    'two times and a name': ('0.0 1.5 pour milk\n1.5 9.25 stir\n', 'ranges',
                             [('pour milk', 0, 1.5), ('stir', 1.5, 9.25)]),
    'verb and object': ('<take><bread> (24-50) [1]\n<open><jam,bread> (60-80) [2]\n', 'ranges',
                        [('take bread', 24, 50), ('open jam,bread', 60, 80)]),
    'a header': ('start end label\n0.0 1.5 pour\n2 3 stir\n', 'ranges', [('pour', 0, 1.5), ('stir', 2, 3)]),
    'ELAN without a header': ('work\t\t00:00:01.000\t1.0\t00:00:02.500\t2.5\t00:00:01.500\t1.5\tfold\n', 'csv',
                              [('fold', 1, 2.5)]),
    'a sentence': ('AO8RW 0.0 6.9##a person puts a book away.\n', 'ranges', [('a person puts a book away.', 0, 6.9)]),
    'Audacity': ('0,5\t1,25\tfold it\n\\\t100\t200\n2.0\t3.0\t\n', 'audacity', [('fold it', .5, 1.25), ('', 2, 3)]),
    'commas': ('1,603,start,0\n604,2198,cut,4\n2199,2548,place,5\n', 'csv',
               [('start', 0, 603), ('cut', 603, 2198), ('place', 2198, 2548)]),
    'an id and times': ('1,15.5,17.2\n12,18,20.25\n', 'csv', [('1', 15.5, 17.2), ('12', 18, 20.25)]),
}


@pytest.mark.parametrize('how', LISTS)
def test_lists(how, put):
    content, format, rows = LISTS[how]
    found = read_labels(put(content, 'a.txt'))
    assert found.format == format and [(r.name, r.start, r.end) for r in found.rows] == rows


def test_marks_of_video_editors(put):
    header = 'Marker Name\tDescription\tIn\tOut\tDuration\tMarker Type\t\r\n'
    premiere = header + 'fold\t\t00;09;28;24\t00;09;29;24\t00;00;01;00\tComment\t\r\n' \
                        'tape\t\t00;10;00;00\t00;10;00;00\t00;00;00;00\tComment\t\r\n'
    found = read_labels(put(premiere.encode('utf-16')))
    assert [r.name for r in found.rows] == ['fold'] and [r.name for r in found.dropped] == ['tape']
    assert (found.rows[0].start, found.rows[0].end) == pytest.approx((568.768, 569.769), abs=1e-3)
    audition = 'Name\tStart\tDuration\tTime Format\tType\tDescription\nfold\t0:01.250\t1:02.500\tdecimal\tCue\t\n'
    assert [(r.name, r.start, r.end) for r in read_labels(put(audition)).rows] == [('fold', 1.25, 63.75)]
    codes = 'name,in,out\nfold,00:00:01:12,00:00:02:00\n'
    assert [(r.start, r.end) for r in read_labels(put(codes), fps=24).rows] == [(1.5, 2)]


def test_captions(put):
    vtt = 'WEBVTT - a title\n\nSTYLE\n::cue { color: red }\n\nNOTE\na --> b\n\n' \
          'id 1\n00:01.000 --> 01:00:02.500 align:start\n<v Ann>fold</v> &amp; tape\n- twice\n\n' \
          '00:01.000 --> 00:01.000\npoint\n'
    found = read_labels(put(vtt, 'a.vtt'))
    assert [(r.name, r.start, r.end) for r in found.rows] == [('fold & tape - twice', 1, 3602.5)]
    assert len(found.dropped) == 1
    assert found.rows[0].where.endswith('line 10')
    srt = '\ufeff1\n00:00:00,500 --> 00:00:07,000\n{\\an8}<i>fold</i>\n\n2\n00:00:07.000 --> 00:00:08,000 X1:1\ntape\n'
    assert [r.name for r in read_labels(put(srt, 'a.srt')).rows] == ['{\\an8}fold', 'tape']
    bare = '00:00:00,500 --> 00:00:07,000\nfold\n\n00:00:07,000 --> 00:00:08,000\ntape\n'
    assert [(r.name, r.end) for r in read_labels(put(bare, 'a.srt')).rows] == [('fold', 7), ('tape', 8)]
    for bad in srt.replace('00:00:08', 'noon'), srt.replace('-->', '->', 1), 'tape':
        with pytest.raises(BadInput): read_labels(put(bad, 'b.srt'))


def test_activitynet_in_all_its_shapes(put):
    entry = dict(segment=[1, 2.5], label='fold')
    shapes = [dict(database=dict(a=dict(annotations=[entry], duration=9))), dict(a=dict(annotations=[entry])),
              dict(database=dict(a=dict(annotation=[entry], subset='training'))),
              dict(a=dict(segments=[[1, 2.5]], labels=['fold'])),
              dict(a=dict(timestamps=[[1, 2.5]], sentences=['fold'])),
              dict(database=dict(a=dict(annotations=[dict(segment=[1, 2.5], sentence='fold')])))]
    for shape in shapes:
        found = read_labels(put(json.dumps(shape), 'a.json'))
        assert found.format == 'activitynet'
        assert [(r.recording, r.name, r.start, r.end) for r in found.rows] == [('a', 'fold', 1, 2.5)]
    wrong = [dict(segment=[1], label='a'), dict(segment=[1, None], label='a'), dict(segment=[1, 2]),
             dict(segment=[1, True], label='a'), dict(segment=['x', 2], label='a')]
    for one in wrong:
        path = put(json.dumps(dict(a=dict(annotations=[one]))), 'b.json')
        with pytest.raises(BadInput, match='a annotations'): read_labels(path)
    path = put(json.dumps(dict(a=dict(segments=[[1, 2]], labels=[]))), 'c.json')
    with pytest.raises(BadInput, match='not as many'): read_labels(path)


def test_splits(put):
    assert read_split(put('{"train": ["a", "b"], "test": ["c"]}', 's.json')) == dict(train=('a', 'b'), test=('c',))
    for wrong in '{"train": ["a"], "test": ["a"]}', '[]', '{"train": "a"}', '{}', '{"train": [1]}':
        with pytest.raises(BadInput): read_split(put(wrong, 's.json'))


def test_captaincook(shared):
    "Counts of the whole set, and its split by person."
    path = shared/'real-labels'/'captaincook4d_step_annotations.csv'
    if not path.exists(): pytest.skip('the labels of CaptainCook4D are not on this machine')
    found = read_labels(path)
    assert found.format == 'captaincook4d' and len(found.recordings) == 384 and len(found.rows) == 5700 - 287
    assert len(found.dropped) == 287 and len({r.name for r in found.rows + found.dropped}) == len(found.names) == 350
    rows = sorted(found.rows, key=lambda r: (r.recording, r.start, r.end))
    pairs = [(a, b) for a, b in pairwise(rows) if a.recording == b.recording]
    assert len(pairs) == 5029 and sum(b.start < a.end for a, b in pairs) == 453
    split = read_split(path.parent/'captaincook4d_person_split.json')
    assert {s: len(r) for s, r in split.items()} == dict(train=204, val=84, test=96)
    assert {r for side in split.values() for r in side} == set(found.recordings)


NET = dict(database=dict(a=dict(duration=9, annotations=[dict(segment=[1, 2.5], label='fold')])))
SAMPLES = [
    (TABLE, 'a.csv'),
    ('VideoID;FrameNo;Phase\n7;10;1\n7;60;2\n', 'a.csv'),
    ('video,reach,pull\n1,1-17,18-30\n2,-,1-4\n', 'a.csv'),
    ('a\tb\tIn\tOut\n\t\t00;09;28;24\t00;09;28;24\n', 'a.csv'),
    ('SIL\n'*9 + 'pour\n'*9, 'a.txt'),
    ('0 SIL\n1 pour\n', 'mapping.txt'),
    ('1-30 SIL\n31-50 pour\n', 'a.txt'),
    ('v_1  1.5 2\nv_1  3 4\n', 'a_test.txt'),
    ('0.5\t1.25\tfold\n', 'a.txt'),
    ('<take><jam> (2-5) [1]\n', 'a.txt'),
    ('WEBVTT\n\n00:01.000 --> 00:02.000\nfold\n', 'a.vtt'),
    ('1\n00:00:01,000 --> 00:00:02,000\nfold\n', 'a.srt'),
    (json.dumps(NET), 'a.json'),
    (json.dumps([dict(start=1, end=2.5, label='fold'), dict(start=3, end=4, label='tape')]), 'a.json')]
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), st.binary(max_size=4)))
SLOW = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(max_examples=200, **SLOW)
@given(st.sampled_from(SAMPLES), CHANGES, st.booleans())
def test_changed_files_give_labels_or_a_sentence(tmp_path, sample, changes, named):
    data = sample[0].encode()
    for at, cut, new in changes:
        i = int(at*len(data))
        data = data[:i] + new + data[i + cut:]
    (path := tmp_path/sample[1]).write_bytes(data)
    for format in [None, *(n for n, r in READERS.items() if named and path.suffix in r.suffixes)]:
        try: found = read_labels(path, format)
        except BadInput: continue
        assert isinstance(found, LabelFile)
        assert all(0 <= r.start < r.end < 1e11 and r.name == r.name.strip() for r in found.rows)


@settings(max_examples=80, **SLOW)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode),
       st.sampled_from(['.csv', '.txt', '.json', '.vtt', '.xlsx', '.x']))
def test_bytes_give_labels_or_a_sentence(tmp_path, data, suffix):
    (path := tmp_path/f'a{suffix}').write_bytes(data)
    for format in [None, *FORMATS]:
        with suppress(BadInput): assert isinstance(read_labels(path, format), LabelFile)


@pytest.mark.parametrize('head, row, want', [
    ('start_s,end_ms', '1,2500', (1, 2.5)), ('start_s,duration_ms', '1,2500', (1, 3.5)),
    ('start (h),end (h)', '0.5,1.5', (1800, 5400)), ('start_ms,end_s', '500,2', (.5, 2))])
def test_each_column_has_its_unit(put, head, row, want):
    found = read_labels(put(f'{head},label\n{row},fold\n'))
    assert [(r.start, r.end) for r in found.rows] == [pytest.approx(want)]


@pytest.mark.parametrize('text, said', [
    ('start_frame,end_seconds,label\n25,2.0,a\n', 'count different things'),
    ('start,end,label\n"999.5","1,000",a\n', 'a large number or a fraction'),
    ('video,start,end,label\na.mp4,1,2,x\n,2,3,y\nb.mp4,1,2,x\n', 'line 3: names no recording'),
    ('start,end,label\n', 'holds no label')])
def test_tables_that_may_mean_two_things(put, text, said):
    with pytest.raises(BadInput, match=said): read_labels(put(text))


def test_comma_is_told(put):
    assert any('decimal comma' in note for note in read_labels(put('start,end,label\n"1,000","1,234",b\n')).notes)


def test_short_milliseconds(put):
    rows = read_labels(put('1\n0:00:01.5 --> 0:00:02,25\ncut\n', 'l.srt')).rows
    assert [(r.start, r.end) for r in rows] == [(1.5, 2.25)]


def test_what_is_nested_is_told(put):
    entry = dict(start=1, end=2, label='cook', segments=[dict(start=1, end=2, label='cut')])
    assert any("'segments' is not read" in note for note in read_labels(put(json.dumps([entry]), 'l.json')).notes)
