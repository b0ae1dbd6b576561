"Label files of annotation tools: real ones to the figures beside them, broken ones to one sentence."
import json, math, shutil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmtemporal.basics import BadInput
from vlmtemporal.label_rows import READERS, LabelFile, RawFile, open_labels
from vlmtemporal.labels import read_labels

TOOLS = {name: name for name in ('elan', 'labelstudio', 'cvat', 'via3', 'boris')} | {'tracks': 'textgrid'} # by folder


@pytest.fixture(scope='module')
def exports(root):
    folder = root.parent/'shared'/'label-exports'
    if not folder.is_dir(): pytest.skip('the exports of annotation tools are not on this machine')
    return folder


@pytest.fixture(scope='module')
def expected(exports): return json.loads((exports/'expected.json').read_text())


def read(path, name=None):
    file = open_labels(path)
    known = [r for r in READERS.values() if r.name in TOOLS.values() and r.looks_like(file)]
    assert name is None or [r.name for r in known] == [name]
    return READERS[name or known[0].name].read(file)


def of_tools(expected):
    ours = [name for name in expected if name.split('/')[0] in TOOLS]
    return [name for name in ours if not name.startswith('tracks') or 'TextGrid' in name]


def overlapping(rows):
    return sum(a.start < b.end - 1e-6 and b.start < a.end - 1e-6 and a.recording == b.recording
               for i, a in enumerate(rows) for b in rows[:i])


def test_every_real_file_is_read_to_its_figures(exports, expected):
    names = of_tools(expected)
    assert len(names) > 16
    for name in names:
        facts, labels = expected[name], read(exports/name, TOOLS[name.split('/')[0]])
        if labels.unit == 'frames' and 'first' in facts: labels = labels.in_seconds()
        rows = sorted(labels.rows, key=lambda r: (r.start, r.end))
        assert len(rows) == facts.get('usable', facts['n']), name
        assert len(labels.dropped) == facts.get('points', facts['n'] if 'usable' in facts else 0), name
        total = sum(r.end - r.start for r in rows)
        for key in ('total', 'total_frames', 'total_units'):
            assert math.isclose(total, facts.get(key, total), abs_tol=1e-3), (name, key)
        if 'labels' in facts: assert sorted(set(labels.labels)) == sorted(facts['labels']), name
        for key, row in (('first', rows[:1]), ('last', rows[-1:])):
            for unit in ('', '_f'):
                if row and key + unit in facts:
                    assert (row[0].start, row[0].end) == pytest.approx(facts[key + unit], abs=1e-4), (name, key)
        assert len(labels.recordings) == facts.get('videos', len(labels.recordings))
        assert all(str(exports/name) in r.where for r in labels.rows + labels.dropped)


@pytest.mark.parametrize('name,across', [
    ('boris/05-aggregated.tsv', 1), ('cvat/02-task-framestep3.xml', 1), ('elan/05-overlap-emptyvalue-v3.0.eaf', 6),
    ('labelstudio/01-timelinelabels-task.json', 1), ('cvat/01-eyecontact-tracks-job.xml', 0),
    ('via3/01-one-file-5segments.json', 0)])
def test_overlaps_of_real_files(exports, name, across):
    assert overlapping(read(exports/name).rows) == across


def test_the_time_of_the_right_media_file(exports):
    late, same = (read(exports/'elan'/name) for name in ('02-offset-on-video.eaf', '03-offset-on-audio.eaf'))
    times = [t for r in late.for_media('test-video.mp4').rows for t in (r.start, r.end)]
    assert times == pytest.approx([.5, 1.32, 2.399, 3.411])
    assert [r.start for r in same.for_media('test-audio.mp4').rows] == [0, 1.899]
    assert [r.start for r in same.for_media('test-audio.wav').rows] == [.5, 2.399]


def test_the_time_of_media_in_a_folder_of_files(exports, tmp_path):
    for name in ('02-offset-on-video.eaf', '03-offset-on-audio.eaf'): shutil.copy(exports/'elan'/name, tmp_path/name)
    both = read_labels(tmp_path)
    assert [len(both.for_media(name).rows) for name in ('test-video.mp4', 'test-audio.mp4')] == [2, 2]
    assert [both.for_media(f'test-{kind}.mp4').rows[0].start for kind in ('video', 'audio')] == [.5, 0]


def test_media_that_are_played_one_after_the_other(exports):
    labels = read(exports/'boris/01-project-v7.boris')
    second = labels.for_media('video_test_25fps_360s.mp4')
    assert any(r.start == pytest.approx(47.805) for r in second.rows)
    assert all(r.end > 0 and r.start < 359.96 and r.recording == '' for r in second.rows)
    assert any('no partner' in note for note in labels.notes)


def test_predictions_are_no_labels(exports):
    labels = read(exports/'labelstudio/04-predictions-videorectangle.json')
    assert not labels.rows and '1 prediction' in labels.notes[0]


def test_elan_agrees_with_pympi(exports):
    pympi = pytest.importorskip('pympi')
    for path in sorted((exports/'elan').glob('*.eaf')):
        theirs = pympi.Elan.Eaf(str(path))
        found = [a for tier in theirs.get_tier_names() for a in theirs.get_annotation_data_for_tier(tier)]
        pairs = [(start, end, name.strip()) for start, end, name, *_ in found]
        ours = [(round(r.start*1000), round(r.end*1000), r.name) for r in read(path).rows]
        assert sorted(ours) == sorted(pairs)


EAF = '''<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT><HEADER TIME_UNITS="milliseconds"/>
<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="0"/><TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="4000"/></TIME_ORDER>
<TIER TIER_ID="work"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="t1" TIME_SLOT_REF2="t2">
<ANNOTATION_VALUE>NAME</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
<TIER TIER_ID="hands" PARENT_REF="work"><ANNOTATION>
<REF_ANNOTATION ANNOTATION_ID="a2" ANNOTATION_REF="a1"><ANNOTATION_VALUE>left</ANNOTATION_VALUE></REF_ANNOTATION>
</ANNOTATION></TIER></ANNOTATION_DOCUMENT>'''
CVAT = '''<annotations><meta><task><id>1</id><labels><label><name>NAME</name></label></labels></task></meta>
<track id="0" label="NAME"><box frame="0" outside="0"/><box frame="5" outside="1"/></track></annotations>'''
STUDIO = '''[{"id": 1, "data": {"video": "/data/upload/1/0a1b2c3d-a.mp4"}, "annotations": [{"id": 2, "result": [
{"id": "r", "type": "timelinelabels", "value": {"ranges": [{"start": 1, "end": 5}], "timelinelabels": ["NAME"]}}]}]}]'''
VIA = '''{"attribute": {"1": {"aname": "Work", "options": {}}}, "file": {"1": {"fname": "a.mp4"}},
"view": {"1": {"fid_list": ["1"]}}, "metadata": {"m": {"vid": "1", "z": [0, 4], "xy": [], "av": {"1": "NAME"}}}}'''
BORIS = '''{"behaviors_conf": {"0": {"code": "NAME", "type": "State event"}}, "observations": {"o": {"events": [
[0, "", "NAME", "", ""], [4, "", "NAME", "", ""]], "file": {"1": ["/a/a.mp4"]}}}}'''
TABLE = 'Time\tMedia file path\tSubject\tBehavior\tStatus\n0\ta.mp4\t\tNAME\tSTART\n4\ta.mp4\t\tNAME\tSTOP\n'
GRID = '"ooTextFile"\n"TextGrid"\n0\n4\n<exists>\n1\n"IntervalTier"\n"work"\n0\n4\n1\n0\n4\n"NAME"\n'
SHORT = ('annotation_id,annotator,id,label,lead_time,video\n'
         '1,2,3,"[{""ranges"":[{""start"":1,""end"":5}],""timelinelabels"":[""NAME""]}]",1,a.mp4\n')
VIA_CSV = ('# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata\n'
           '"m","[""a.mp4""]",0,"[0,4]","[]","{""1"":""NAME""}"\n')
SMALL = {'elan': (EAF,), 'cvat': (CVAT,), 'labelstudio': (STUDIO, SHORT), 'via3': (VIA, VIA_CSV),
         'boris': (BORIS, TABLE), 'textgrid': (GRID,)}
EVERY = [(name, text) for name, texts in SMALL.items() for text in texts]


def reading(name, data, tmp_path):
    path = tmp_path/'a file'
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return READERS[name].read(open_labels(path))


@pytest.mark.parametrize('label', ['折り畳む', 'Schnürung – «ö»', 'сгибать', 'قفل', '🧵', 'e\u0301', "it's 50 % {x}"])
@pytest.mark.parametrize('name,text', EVERY)
def test_labels_of_any_script(name, text, label, tmp_path):
    for codec in ('utf-8', 'utf-8-sig', 'utf-16'):
        if codec == 'utf-16': text = text.replace('encoding="UTF-8"', 'encoding="UTF-16"')
        labels = reading(name, text.replace('NAME', label).encode(codec), tmp_path)
        assert labels.rows[0].name == label
        assert (labels.rows[0].start, labels.rows[0].end) == ((0, 5) if labels.unit == 'frames' else (0, 4))
        file = open_labels(tmp_path/'a file')
        assert [r.name for r in READERS.values() if r.name in SMALL and r.looks_like(file)] == [name]


BROKEN = {
    'cut in the middle': lambda text: text[:len(text)*2//3],
    'another encoding': lambda text: text.replace('NAME', 'Schnürung').encode('latin-1'),
    'Cyrillic of Windows': lambda text: text.replace('NAME', 'сгибать').encode('cp1251'),
    'UTF-16 without its mark': lambda text: text.encode('utf-16-le')[:-1],
}


@pytest.mark.parametrize('how', BROKEN)
@pytest.mark.parametrize('name,text', EVERY)
def test_broken_files_are_one_sentence(name, text, how, tmp_path):
    with pytest.raises(BadInput, match='a file') as e: reading(name, BROKEN[how](text), tmp_path)
    assert '\n' not in str(e.value) and len(str(e.value)) < 400


@pytest.mark.parametrize('value', ['NaN', 'Infinity', '1e999', '"x"', 'null', '[]', '9'*5000, '9'*40, '-1e300'])
@pytest.mark.parametrize('name,text,number', [
    ('labelstudio', STUDIO, '"end": 5'), ('via3', VIA, '[0, 4]'), ('boris', BORIS, '[4, ""')])
def test_numbers_that_are_none(name, text, number, value, tmp_path):
    old = number.strip('[]",').split(' ')[-1].strip('",') if name != 'boris' else '4'
    new = text.replace(number, number.replace(old, value))
    with pytest.raises(BadInput, match='a file'): reading(name, new, tmp_path)


@pytest.mark.parametrize('value', ['NaN', 'inf', '1e999', 'x', '9'*5000, '4,000.5.1'])
@pytest.mark.parametrize('name,text,number', [
    ('elan', EAF, '4000'), ('cvat', CVAT, 'frame="5"'), ('boris', TABLE, '\n4\t'), ('textgrid', GRID, '\n4\n"NAME')])
def test_numbers_in_texts_that_are_none(name, text, number, value, tmp_path):
    old = '4000' if '4000' in number else ''.join(c for c in number if c.isdigit())
    new = text.replace(number, number.replace(old, value))
    with pytest.raises(BadInput, match='line [0-9]+'): reading(name, new, tmp_path)


@pytest.mark.parametrize('name,text', [('elan', EAF), ('cvat', CVAT)])
def test_xml_declares_nothing(name, text, tmp_path):
    secret = tmp_path/'secret'
    secret.write_text('SECRET')
    body = text.partition('?>\n')[2] or text
    bomb = ''.join(f'<!ENTITY e{i} "{f"&e{i - 1};"*10 if i else "ha"}">' for i in range(12))
    for inside in (f'<!ENTITY e11 SYSTEM "{secret.as_uri()}">', bomb, f'<!ENTITY % p SYSTEM "{secret.as_uri()}"> %p;'):
        with pytest.raises(BadInput, match='line 1: cannot be read as XML') as e:
            reading(name, f'<!DOCTYPE a [{inside}]>\n{body.replace("NAME", "&e11;")}', tmp_path)
        assert 'SECRET' not in str(e.value)
    with pytest.raises(BadInput, match='deep'): reading(name, '<a>'*10_000, tmp_path)


def test_elan_without_times(tmp_path):
    later = EAF.replace(' TIME_VALUE="4000"', '')
    with pytest.raises(BadInput, match='no annotation has a time; align'): reading('elan', later, tmp_path)
    more = EAF.replace('</ANNOTATION></TIER>\n<TIER', '''</ANNOTATION><ANNOTATION><ALIGNABLE_ANNOTATION
        ANNOTATION_ID="a3" TIME_SLOT_REF1="t2" TIME_SLOT_REF2="t9"/></ANNOTATION></TIER>\n<TIER''')
    labels = reading('elan', more, tmp_path)
    assert len(labels.rows) == 2
    assert labels.notes[0].endswith('line 5: 1 annotation has no time, left out; align them in ELAN')


def test_studio_counts_frames_or_seconds(tmp_path):
    sound = '''{"id": "s", "type": "labels", "value": {"start": 1.5, "end": 2.5, "channel": 0, "labels": ["hum"]}},
    {"id": "t", "type": "labels", "value": {"start": 1, "end": 2, "text": "no time", "labels": ["noun"]}},
    {"id": "c", "type": "choices", "value": {"choices": ["good"]}},'''
    both = STUDIO.replace('[\n{', f'[{sound}\n{{')
    with pytest.raises(BadInput, match='say the rate with --fps'): reading('labelstudio', both, tmp_path)
    labels = READERS['labelstudio'].read(open_labels(tmp_path/'a file', fps=10))
    assert [(r.name, r.start, r.end) for r in labels.rows] == [('NAME', 0, .5), ('hum', 1.5, 2.5)]
    assert any('1 choices' in note for note in labels.notes) and labels.unit == 'seconds'


def test_studio_may_say_the_rate(tmp_path):
    labels = reading('labelstudio', STUDIO.replace('"data": {', '"data": {"fps": 12.5, '), tmp_path)
    assert labels.in_seconds().rows[0].end == .4
    assert labels.in_seconds(25).rows[0].end == .2, 'a person knows better'
    short = SHORT.replace('video\n', 'video,fps\n').replace('a.mp4\n', 'a.mp4,50\n')
    assert reading('labelstudio', short, tmp_path).rates == {'a.mp4': 50}
    assert any('24 where it states none' in note for note in reading('labelstudio', STUDIO, tmp_path).notes)


def test_studio_tasks_of_two_people(tmp_path):
    task = json.loads(STUDIO)[0]
    task['annotations'] = [{**task['annotations'][0], 'completed_by': who} for who in (1, 2)]
    task['annotations'].append({**task['annotations'][0], 'was_cancelled': True})
    labels = reading('labelstudio', json.dumps(task), tmp_path)
    assert len(labels.rows) == 2 and len(labels.tracks) == 2
    assert any('annotated twice' in n for n in labels.notes) and any('1 skipped annotation' in n for n in labels.notes)
    assert labels.recordings == ('a.mp4',)


def test_cvat_projects_and_skeletons(tmp_path):
    text = '''<annotations><meta><project><tasks><task><id>7</id><source>a.mp4</source></task><task><id>8</id>
    <source>b.mp4</source><start_frame>0</start_frame><frame_filter>step=2</frame_filter></task></tasks></project></meta>
    <track id="0" label="Fold" task_id="7"><skeleton frame="0"><points label="1" outside="0"/>
    <points label="2" outside="1"/></skeleton><skeleton frame="3"><points label="1" outside="1"/>
    <points label="2" outside="1"/></skeleton></track>
    <track id="1" label="Tape" task_id="8"><box frame="4"/><box frame="0"/></track></annotations>'''
    rows = reading('cvat', text, tmp_path).rows
    assert [(r.recording, r.name, r.start, r.end) for r in rows] == [('a.mp4', 'Fold', 0, 3), ('b.mp4', 'Tape', 0, 6)]


def test_boris_of_newer_versions(tmp_path):
    head = 'Observation id,Observation type,Media duration (s),FPS (frame/s),Subject,Behavior,Modifiers,Behavior type,'
    events = ((1, 'START', 'x'), (2, 'START', 'y'), (3, 'STOP', 'x'), (5, 'STOP', 'y'), (6, 'POINT', ''),
              (7, 'STOP', 'x'))
    lines = ''.join(f'o,Media file,60,25,anna,Fold,{m},{kind},{t},videos/a.mp4\n' for t, kind, m in events)
    tabular = head + 'Time,Media file name\n' + lines
    labels = reading('boris', tabular, tmp_path)
    assert [(r.start, r.end) for r in labels.rows] == [(1, 3), (2, 5)]
    assert {(r.subject, r.recording) for r in labels.rows} == {('anna', 'a.mp4')}
    assert len(labels.dropped) == 1 and any('line 7: 1 start or stop has no partner' in n for n in labels.notes)
    assert labels.durations == {'a.mp4': 60} and labels.rates == {'a.mp4': 25}
    aggregated = head.replace(',', ';') + 'Start (s);Stop (s)\no;Live;NA;NA;No focal subject;Fold;;STATE;1,5;2,5\n'
    assert [(r.start, r.end, r.subject) for r in reading('boris', aggregated, tmp_path).rows] == [(1.5, 2.5, '')]


def test_boris_tables_that_are_broken(tmp_path):
    with pytest.raises(BadInput, match='line 3: the line is too short'):
        reading('boris', TABLE.replace('\n4\ta.mp4\t\tNAME\tSTOP', '\n4\ta.mp4'), tmp_path)
    with pytest.raises(BadInput, match='a file'): reading('boris', TABLE.replace('Time', 'Time\n"x'), tmp_path)
    with pytest.raises(BadInput, match='has no columns Behavior'): reading('boris', 'a\tb\n1\t2\n', tmp_path)


def test_boris_takes_back_its_offsets(tmp_path):
    late = BORIS.replace('"file"', '"time offset": 100, "file"')
    late = late.replace('[0, ""', '[101, ""').replace('[4, ""', '[104.5, ""')
    labels = reading('boris', late, tmp_path)
    assert [(r.start, r.end) for r in labels.rows] == [(101, 104.5)]
    assert [(r.start, r.end) for r in labels.for_media('a.mp4').rows] == [(1, 4.5)]
    table = 'Time offset (s)\t100\n' + TABLE.replace('\n0\t', '\n101\t').replace('\n4\t', '\n104.5\t')
    assert [(r.start, r.end) for r in reading('boris', table, tmp_path).for_media('A.mp4').rows] == [(1, 4.5)]


def test_via_regions_are_no_segments(tmp_path):
    table = '''# ATTRIBUTE = {"1":{"aname":"Comment","anchor_id":"FILE1_Z2_XY0","type":1,"options":{}}
,"3":{"aname":"Scene","anchor_id":"FILE1_Z2_XY0","type":3,"options":{"0":"Fold","1":"Tape"}}
,"4":{"aname":"Area","anchor_id":"FILE1_Z1_XY1","type":3,"options":{"0":"Title"}}}
# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata
"1_a","[""a é.mp4""]",0,"[1.5,4]","[]","{""1"":""_DEFAULT"",""3"":""0""}"
"1_b","[""a é.mp4""]",0,"[2.5]","[2,1,1,5,5]","{""4"":""0""}"
"1_c","[""a é.mp4""]",0,"[]","[]","{""1"":""all of it""}"
'''.replace('\n,', ',')
    labels = reading('via3', table, tmp_path)
    assert [(r.name, r.track, r.where[-6:]) for r in labels.rows] == [('Fold', 'Scene', 'line 3')]
    assert labels.names == ('Fold', 'Tape') and len(labels.dropped) == 1 and labels.recordings == ('a é.mp4',)


def test_what_pympi_writes(tmp_path):
    elan = pytest.importorskip('pympi').Elan
    eaf = elan.Eaf()
    eaf.add_linguistic_type('association', 'Symbolic_Association', timealignable=False)
    eaf.add_tier('work')
    eaf.add_tier('hands', ling='association', parent='work')
    for i in range(3):
        eaf.add_annotation('work', 1000*i, 1000*i + 800, f'折る {i}')
        eaf.add_ref_annotation('hands', 'work', 1000*i + 10, f'left {i}')
    eaf.add_linked_file('file:///a/box 1.mp4', mimetype='video/mp4', time_origin=250)
    eaf.to_file(str(tmp_path/'a file'))
    labels = READERS['elan'].read(open_labels(tmp_path/'a file'))
    theirs = [a[:3] for tier in ('work', 'hands') for a in eaf.get_annotation_data_for_tier(tier)]
    assert sorted(theirs) == sorted((round(r.start*1000), round(r.end*1000), r.name) for r in labels.rows)
    assert len(labels.rows) == 6 and labels.for_media('box 1.mp4').rows[0].start == .25


def allowed(name, data, tmp_path_factory):
    "What reading may do: rows, or one sentence."
    file = RawFile(tmp_path_factory/'x', data)
    for reader in READERS.values(): reader.looks_like(file)
    try: labels = READERS[name].read(file)
    except BadInput as e: return str(e)
    assert isinstance(labels, LabelFile) and all(r.end > r.start and math.isfinite(r.end) for r in labels.rows)
    return labels


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), name=st.sampled_from(sorted(SMALL)))
@example(data=b'[1]', name='boris')
@example(data=b'{"observations": 1}', name='boris')
@example(data=b'', name='textgrid')
def test_any_bytes(data, name, tmp_path_factory): allowed(name, data, tmp_path_factory.getbasetemp())


PIECES = ['', '"', '[', ']', '{}', '[]', 'null', '1', '-1', '0', '1e9', ' ', '\n', '\t', ',', '<', '>', '<a/>', '"x"',
          'true', ';', '&#0;', 'é', '\0']


@settings(max_examples=400, deadline=None)
@given(which=st.sampled_from(EVERY), data=st.data())
def test_any_change_of_a_small_file(which, data, tmp_path_factory):
    name, text = which
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        more = data.draw(st.sampled_from(PIECES))
        text = text[:at] + more + text[at + data.draw(st.integers(0, 12)):]
    allowed(name, text.encode(), tmp_path_factory.getbasetemp())


def values(tree, path=()):
    "Every place in a value of JSON."
    yield path
    for key, value in (tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()):
        yield from values(value, (*path, key))


@pytest.mark.parametrize('name,text', [(n, t) for n, t in EVERY if t.startswith(('{', '['))])
def test_any_value_of_another_kind(name, text, tmp_path):
    "Every value of a project replaced by every other kind of value."
    for path in values(json.loads(text)):
        for new in (None, 7, -1, 'x', '', [], {}, [[]], [{}], {'x': {}}, True, 1e300):
            tree = json.loads(text)
            inside = tree
            for key in path[:-1]: inside = inside[key]
            if path: inside[path[-1]] = new
            allowed(name, json.dumps(tree if path else new).encode(), tmp_path)


def test_cvat_tags_belong_to_their_task(tmp_path):
    tasks = ''.join(f'<task><id>{i}</id><source>{i}.mp4</source></task>' for i in (3, 4))
    path = tmp_path/'c.xml'
    text = f'<annotations><meta><project><tasks>{tasks}</tasks></project></meta>' \
        '<tag label="A" frame="5" task_id="4"/></annotations>'
    path.write_text(text)
    assert [r.recording for r in read_labels(path).rows] == ['4.mp4']
    path.write_text(text.replace('task_id="4"', 'task_id="9"'))
    with pytest.raises(BadInput, match="the task '9' is not in the list"): read_labels(path)
