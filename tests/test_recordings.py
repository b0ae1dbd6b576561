"A folder of anybody's videos and labels: what is understood of it, what is built from it, what is said of bad input."
import json, os, shutil, subprocess, unicodedata, warnings
from dataclasses import replace

import numpy as np
import pytest

from vlmtemporal.basics import BadInput, VLMTemporalWarning
from vlmtemporal.dataset import build
from vlmtemporal.frames import FrameSpec
from vlmtemporal.labels import read_labels, write_labels
from vlmtemporal.openpack import annotation_path, video_path, write_annotation
from vlmtemporal.operations import BUILT_IN, LOGISTICS, Segment, read_yaml
from vlmtemporal.recordings import (FILE, Project, Recording, default_spec, get_split, init, look, project_text,
                                    propose_split, session_of, sessions)
from vlmtemporal.sessions import fitted
from vlmtemporal.shards import Shards, sessions_root
from vlmtemporal.study import study
from vlmtemporal.video import ffmpeg, write_video

SECONDS = 14
UNIFORM = FrameSpec(sampler='uniform', size=(64, 48))


def encode(source, out, *options):
    "The first seconds of a video, small, in another way."
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [ffmpeg(), '-v', 'error', '-y', '-i', source, '-t', SECONDS, '-s', '64x48', '-an', *options, out]
    subprocess.run([*map(str, command)], check=True)


def clock(seconds):
    "mm:ss with a decimal comma."
    return f'{int(seconds//60)}:{seconds%60:06.3f}'.replace('.', ',')


def write_semicolons(path, segments, recording):
    rows = [f'{clock(s.start)};{clock(s.end)};{s.operation}' for s in segments]
    path.write_text('\ufeffvon;bis;label\n' + '\n'.join(rows) + '\n', encoding='utf-8')


def write_audacity(path, segments, recording):
    path.write_text(''.join(f'{s.start:.6f}\t{s.end:.6f}\t{s.operation}\n' for s in segments))


def writer(format):
    def write(path, segments, recording):
        write_labels(path, segments, format, recording=recording, fps=25., duration=float(SECONDS))
    return write


WAYS = { # subject: file name, options of FFmpeg, suffix of the labels, how they are written
    'U0101': ('Kiste eins.mkv', ('-c:v', 'mpeg4', '-q:v', '2'), '.eaf', writer('elan')),
    'U0102': ('boîte deux.avi', ('-c:v', 'mjpeg', '-q:v', '2'), '.json', writer('labelstudio')),
    'U0103': ('коробка три.mov', ('-c:v', 'libx264', '-qp', '10', '-g', '7'), '.json', writer('activitynet')),
    'U0104': ('箱 四.webm', ('-c:v', 'libvpx', '-b:v', '2M', '-deadline', 'realtime'), '.vtt', writer('webvtt')),
    'U0105': ('kutu beş.mp4', ('-c:v', 'libx264', '-qp', '10', '-bf', '3'), '.csv', write_semicolons),
    'U0106': ('box six.mpg', ('-c:v', 'mpeg2video', '-q:v', '2'), '.txt', write_audacity),
}


def snapped(session):
    "The session's first segments on the grid of frames."
    found = (Segment(s.operation, round(s.start*25)/25, min(round(s.end*25)/25, SECONDS)) for s in session.segments)
    return [s for s in found if s.end > s.start]


@pytest.fixture(scope='module')
def two(mock, tmp_path_factory):
    "The same six sessions in OpenPack's layout, and as somebody else's files."
    openpack, own = tmp_path_factory.mktemp('openpack'), tmp_path_factory.mktemp('Eigene Filme')
    for s in sessions(mock, tuple(WAYS)):
        name, options, suffix, write = WAYS[s.subject]
        plain = video_path(openpack, s.subject, s.id, s.start)
        encode(s.source, plain, '-c:v', 'libx264', '-qp', '10')
        segments = snapped(s)
        rows, there = [(1, x) for x in segments], annotation_path(openpack, s.subject, s.id)
        write_annotation(there, s.subject, s.id, rows, s.start, LOGISTICS)
        video = own/s.subject/name
        encode(plain, video, *options)
        write(video.with_suffix(suffix), segments, video.stem)
    return openpack, own


@pytest.fixture(scope='module')
def project(two):
    "The folder after `init`."
    _, own = two
    return init(own)


SPLIT = dict(train=tuple(WAYS)[:4], val=('U0105',), test=('U0106',))


def test_init_understands_six_formats(two, project):
    _, own = two
    assert project.project.taxonomy is LOGISTICS and not (own/'taxonomy.yaml').exists()
    assert [row[5] for row in project.rows] == ['elan', 'labelstudio', 'activitynet', 'webvtt', 'csv', 'audacity']
    assert not project.questions and not project.problems
    assert Project.load(own) == replace(project.project, path=own/FILE) and project.project.split == SPLIT


def test_sessions_are_those_of_the_openpack_layout(two, project):
    openpack, own = two
    for ours, theirs in zip(sessions(own), sessions(openpack), strict=True):
        assert ours.segments == theirs.segments and ours.subject == theirs.subject
        assert session_of(ours.source) == ours and session_of(theirs.source) == theirs
        assert abs(ours.open().info.duration - theirs.open().info.duration) < .01


@pytest.fixture(scope='module')
def built(two, project, tmp_path_factory):
    "Shards from both, the project's recordings called as OpenPack's: clips are jittered by their names."
    openpack, own = two
    text = (own/FILE).read_text()
    for r in project.project.recordings: text = text.replace(f'id: {r.id},', 'id: S0100,', 1)
    renamed = own/'renamed.yaml'
    renamed.write_text(text)
    out = tmp_path_factory.mktemp('shards')
    kinds = 'boundary', 'anticipation', 'sliding'
    build(renamed, out/'own', spec=UNIFORM, kinds=kinds)
    ids = {s.subject: s for s in sessions(openpack)}
    from vlmtemporal import openpack as layout
    before = layout.PROTOCOLS['specification']
    layout.PROTOCOLS['specification'] = {side: tuple(s for s in who if s in ids) for side, who in SPLIT.items()}
    try: build(openpack, out/'openpack', spec=UNIFORM, kinds=kinds)
    finally: layout.PROTOCOLS['specification'] = before
    return out


def test_the_examples_are_the_same(built):
    for side in SPLIT:
        ours, theirs = Shards(built/'own'/side), Shards(built/'openpack'/side)
        assert ours.keys == theirs.keys and len(ours) > 3 and ours.people == theirs.people
        for a, b in zip(ours, theirs, strict=True):
            assert (a.answer, a.start, a.boundary, a.n_frames) == (b.answer, b.start, b.boundary, b.n_frames)
            assert a.indices.tolist() == b.indices.tolist()
            assert np.abs(a.frames.astype(int) - b.frames).mean() < 12
    assert Shards(built/'own'/'train').grammar.to_dict() == Shards(built/'openpack'/'train').grammar.to_dict()


def test_it_trains(built, tmp_path):
    from vlmtemporal.adapters import Adapter
    from vlmtemporal.train import fit
    from vlmtemporal.trainer import TrainConfig
    run = fit(built/'own', tmp_path/'run', 'tiny', TrainConfig(max_steps=2, micro_batch=1, accumulation=1))
    assert run.finished and Adapter.load(run.adapter).spec == UNIFORM


def test_the_sessions_are_found_again(built, two):
    _, own = two
    assert sessions_root(Shards(built/'own'/'test')) == (own/'renamed.yaml').resolve()


def test_study_takes_it(two, project):
    _, own = two
    assert study(own, ('uniform',), UNIFORM).sessions >= 5


# a small project, whose files are changed for each case

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "Three videos of ten seconds."
    folder = tmp_path_factory.mktemp('small')
    for i, who in enumerate(('anna', 'ben', 'cem')):
        write_video(folder/who/'box 1.mp4', np.full((250, 32, 32, 3), 40*i, np.uint8), 25)
        (folder/who/'box 1.csv').write_text('start,end,label\n0,4,cut\n4,9.5,glue\n')
    return folder


@pytest.fixture
def folder(small, tmp_path):
    shutil.copytree(small, tmp_path/'p')
    return tmp_path/'p'


def rewrite(folder, old, new):
    text = (folder/FILE).read_text()
    assert old in text
    (folder/FILE).write_text(text.replace(old, new, 1))


def refusal(work, *args):
    with pytest.raises(BadInput) as e: work(*args)
    assert '\n' not in str(e.value)
    return str(e.value)


def test_init_never_overwrites_and_writes_nothing_that_is_wrong(folder):
    (folder/'anna'/'box 1.srt').write_text('1\n00:00:00,000 --> 00:00:02,000\ncut\n')
    assert 'box 1.csv and anna/box 1.srt; remove all but one' in refusal(init, folder)
    assert not (folder/FILE).exists() and not (folder/'taxonomy.yaml').exists()
    (folder/'anna'/'box 1.srt').unlink()
    init(folder)
    before = (folder/FILE).read_bytes(), (folder/'taxonomy.yaml').read_bytes()
    assert 'is there already' in refusal(init, folder)
    assert before == ((folder/FILE).read_bytes(), (folder/'taxonomy.yaml').read_bytes())


TYPOS = [ # old, new, what is said
    ('overlaps:', 'overlap:', "unknown key 'overlap'; did you mean overlaps?"),
    ('overlaps: refuse', 'overlaps: latest wins', "'latest wins' is no rule for overlaps"),
    ('taxonomy: taxonomy.yaml', 'taxonomy: taxonmy.yaml', 'there is no file taxonmy.yaml'),
    ('frames: 8', 'frames: 800', '800'),
    ('seconds: 5', 'seconds: 90', "'90' is not a number from 2 to 60"),
    ('sampler: uniform', 'sampler: entropie', 'entropie'),
    ('train: [anna]', 'train: [anne]', "no person is called 'anne'; did you mean anna?"),
    ('val: [ben]', 'val: [anna]', 'anna is in train too'),
    ('val: [ben]', 'vale: [ben]', "unknown key 'vale'; did you mean val?"),
    ('subject: ben, ', '', "no person is called 'ben'"),
    ('id: box_1', 'id: box 1', "'box 1' is no name; use letters, digits and _ only, such as box_1"),
    ('labels: ben', 'label: ben', "unknown key 'label'; did you mean labels?"),
    (', labels: ben/box 1.csv', '', 'has no labels'),
    ('ben/box 1.mp4', 'ben/box 2.mp4', 'there is no video ben/box 2.mp4'),
    ('ben/box 1.csv', 'ben/box 2.csv', 'there is no labels file ben/box 2.csv'),
    ('recordings:\n', 'recordings:\n- [', 'is no YAML'),
    ('recordings:\n', 'recordings: 3\nothers:\n', ''),
]


@pytest.mark.parametrize('old, new, said', TYPOS)
def test_a_typo_is_said_with_its_line(folder, old, new, said):
    init(folder)
    rewrite(folder, old, new)
    message = refusal(sessions, folder)
    assert said in message and f'{FILE}, line ' in message


def test_two_recordings_of_one_name(folder):
    init(folder)
    rewrite(folder, 'subject: ben', 'subject: anna')
    rewrite(folder, 'val: [ben]', 'val: []')
    message = refusal(sessions, folder)
    assert 'two recordings are called box_1 (the other in line ' in message and f'{FILE}, line ' in message


def test_an_empty_file_and_another_encoding(folder):
    init(folder)
    text = (folder/FILE).read_text()
    for data in (b'', b'# nothing\n'):
        (folder/FILE).write_bytes(data)
        assert 'is empty; list the recordings' in refusal(sessions, folder)
    (folder/FILE).write_bytes(text.replace('anna', 'änna').encode('latin-1'))
    assert 'cannot be read as utf-8' in refusal(sessions, folder) and 'line ' in refusal(sessions, folder)


def test_an_unknown_label_is_said_with_its_line_and_the_nearest(folder):
    init(folder)
    (folder/'ben'/'box 1.csv').write_text('start,end,label\n0,4,cut\n4,9.5,glüe\n')
    message = refusal(sessions, folder)
    assert "box 1.csv, line 3: the label 'glüe' is not in the taxonomy" in message and 'glue' in message


def test_a_video_without_labels_and_labels_without_a_video_are_questions(folder):
    (folder/'ben'/'box 1.csv').rename(folder/'ben'/'kitchen.csv')
    write_video(folder/'ben'/'box 2.mp4', np.zeros((50, 32, 32, 3), np.uint8), 25)
    found = look(folder)
    assert [r.subject for r in found.project.recordings] == ['anna', 'cem']
    assert any('box 2.mp4: no labels were found' in q for q in found.questions)
    assert any('kitchen.csv: no video was found' in q for q in found.questions)
    assert '# ? ben/box 1.mp4: no labels' in project_text(found.project, found.questions)
    for p in folder.rglob('*.csv'): p.unlink()
    assert 'holds 4 videos and no labels' in refusal(init, folder)


def test_labels_beyond_the_end(folder, tmp_path):
    init(folder)
    (folder/'ben'/'box 1.csv').write_text('start,end,label\n0,4,cut\n4,10.8,glue\n')
    s = sessions(folder)[1]
    assert fitted(s, s.open().info.duration).segments[-1].end == 10.
    (folder/'ben'/'box 1.csv').write_text('start,end,label\n0,4,cut\n4,13.5,glue\n')
    message = refusal(build, folder, tmp_path/'out')
    assert 'end 3.5 s after the video does, which lasts 10.0 s' in message and not (tmp_path/'out').exists()
    assert 'end 3.5 s after' in refusal(study, folder)
    (folder/FILE).unlink()
    assert 'end 3.5 s after' in refusal(init, folder) and not (folder/FILE).exists()


def test_an_offset_moves_the_labels(folder):
    init(folder)
    rewrite(folder, 'labels: ben/box 1.csv', 'labels: ben/box 1.csv, offset: 0.25')
    assert sessions(folder)[1].segments[0] == Segment('cut', .25, 4.25)


def test_a_rate_that_does_not_match_the_frames(folder):
    (folder/'ben'/'box 1.csv').unlink()
    (folder/'ben'/'box 1.txt').write_text('cut\n'*100 + 'glue\n'*150)
    found = init(folder)
    assert found.project.recordings[1].fps == 25
    assert sessions(folder)[1].segments == (Segment('cut', 0, 4), Segment('glue', 4, 10))
    for rate in ('15', '60'):
        rewrite(folder, f'fps: {25 if rate == "15" else 15}}}', f'fps: {rate}}}')
        assert f'at {rate} a second last' in (m := refusal(sessions, folder)) and '`fps: 25` would fit' in m


def test_whole_numbers_are_frames_where_a_rate_is_said(folder):
    (folder/'ben'/'box 1.csv').write_text('start,end,label\n0,100,cut\n100,240,glue\n')
    assert 'end 230.0 s after the video' in refusal(init, folder)
    look(folder, fps=25).save()
    assert 'labels: ben/box 1.csv, fps: 25}' in (folder/FILE).read_text()
    assert sessions(folder)[1].segments == (Segment('cut', 0, 4), Segment('glue', 4, 9.6))


def test_label_studio_has_a_rate_of_its_own(folder):
    (folder/'ben'/'box 1.csv').unlink()
    ranges = dict(ranges=[dict(start=1, end=100)], timelinelabels=['cut'])
    result = [dict(id='1', type='timelinelabels', from_name='l', to_name='video', value=ranges)]
    task = dict(id=1, data=dict(video='box 1.mp4'), annotations=[dict(id=1, result=result)])
    (folder/'ben'/'box 1.json').write_text(json.dumps([task]))
    asked, = (q for q in init(folder).questions if 'Label Studio' in q)
    assert "the video's 25 a second" in asked and 'write `fps: 24`' in asked
    assert sessions(folder)[1].segments == (Segment('cut', 0, 4),)
    rewrite(folder, 'fps: 25}', 'fps: 24}')
    assert sessions(folder)[1].segments[0].end == pytest.approx(100/24, abs=.001)
    (folder/FILE).unlink()
    assert not any('Label Studio' in q for q in look(folder, fps=25).questions)


def test_numbers_are_written_as_they_are(folder):
    exact = replace(init(folder).project.recordings[0], offset=1234.5678, fps=30000/1001)
    project = replace(Project.load(folder), recordings=(exact, *Project.load(folder).recordings[1:]))
    (folder/FILE).write_text(project_text(project), encoding='utf-8')
    read = Project.load(folder).recordings[0]
    assert (read.offset, read.fps) == (exact.offset, exact.fps)


def test_what_view_made_is_no_recording(folder):
    from vlmtemporal.viewing import view
    init(folder)
    view(folder)
    shutil.copy(folder/'anna'/'box 1.mp4', folder/'view'/'copy.mp4')
    (folder/FILE).unlink()
    assert len(look(folder).project.recordings) == 3 and not any('view' in q for q in look(folder).questions)


def test_overlaps_are_a_question_then_a_rule(folder):
    (folder/'ben'/'box 1.csv').write_text('start,end,label\n0,5,cut\n4,9.5,glue\n7,7,cut\n')
    found = init(folder)
    empty, asked = found.questions
    assert "ben/box 1.csv, line 4: 'cut' ends when it starts (7 to 7 seconds)" in empty
    assert asked.startswith('1 of 6 labels overlaps the one before, 1.0 s in all') and found.rows[1][6] == '2'
    assert "ben/box 1.csv, line 3: 'glue' overlaps 'cut' (ben/box 1.csv, line 2) by 1.00 s" in asked
    message = refusal(sessions, folder)
    assert "line 3: 'glue' overlaps 'cut'" in message and 'line 2' in message and 'by 1.00 s' in message
    rewrite(folder, 'overlaps: refuse', 'overlaps: split at the middle')
    s = sessions(folder)[1]
    assert s.segments == (Segment('cut', 0, 4.5), Segment('glue', 4.5, 9.5))
    assert s.overlaps == dict(rule='split at the middle', overlaps=1, seconds=1., rounded=0, gone=0, empty=1)
    assert '1 neighbouring labels overlap' in s.notes[0] and 'line 4' in s.notes[1]


def test_overlaps_are_in_the_index(folder, tmp_path):
    (folder/'anna'/'box 1.csv').write_text('start,end,label\n0,5,cut\n4,9.5,glue\n')
    init(folder, overlaps='later wins')
    build(folder, tmp_path/'out', 'train', FrameSpec(sampler='uniform', size=(32, 32)))
    index = Shards(tmp_path/'out'/'train').index
    assert index['overlaps']['anna-box_1']['overlaps'] == 1 and 'later wins' in index['notes']['anna-box_1'][0]


def test_few_people_split_by_recording_and_it_is_said(folder):
    for i, who in enumerate(('ben', 'cem')):
        for p in (folder/who).iterdir(): p.rename(folder/'anna'/f'box {i + 2}{p.suffix}')
        (folder/who).rmdir()
    found = init(folder)
    assert any('split by recording, as at least three people' in s for s in found.said)
    assert [s.key for s in sessions(folder)] == ['box_1', 'box_2', 'box_3']
    for id in ('box_1', 'box_2', 'box_3'): rewrite(folder, f'id: {id},', f'id: {id}, subject: anna,')
    with pytest.warns(VLMTemporalWarning, match='anna is in train and val and test'):
        split = get_split(folder, 'recordings', ())
    assert split == dict(train=('box_1',), val=('box_2',), test=('box_3',))
    assert [s.key for s in sessions(folder, ('box_2',))] == ['box_2']


def test_protocols_of_a_project(folder):
    init(folder)
    people = ['anna', 'ben', 'cem']
    assert get_split(folder, 'leave-out:anna', people)['test'] == ('anna',)
    assert get_split(folder, 'fold:2/3', people)['test'] == ('ben',)
    assert 'use recordings, leave-out:WHO or fold:I/K' in refusal(get_split, folder, 'specification', people)
    assert default_spec(folder) == FrameSpec()
    rewrite(folder, 'seconds: 5, fps: 25, frames: 8', 'seconds: 4, fps: 10, frames: 6')
    rewrite(folder, 'sampler: uniform', 'sampler: entropy')
    spec = default_spec(folder)
    assert (spec.seconds, spec.fps, spec.k, spec.sampler) == (4, 10, 6, 'entropy')


def test_one_table_tells_videos_of_one_name_by_their_folders(folder):
    "Everybody's video is called alike; the table says whose, with a path of another machine."
    video = next(p for p in folder.rglob('*') if p.suffix == '.mp4')
    who = 'Müller', 'Schmidt', 'Öztürk'
    home = folder/'alike'
    for name in who:
        (home/name).mkdir(parents=True)
        shutil.copy(video, home/name/'Aufnahme 1.mp4')
    rows = [f'"D:\\Filme\\{name}\\Aufnahme 1.mp4",00:0{i},00:06,kochen' for i, name in enumerate(who)]
    (home/'Zeiten.csv').write_text('\n'.join(['Datei,Beginn,Ende,Tätigkeit', *rows]), encoding='utf-8')
    init(home)
    assert [(s.subject, s.segments[0].start) for s in sessions(home)] == [*zip(who, (0, 1, 2), strict=True)]
    (home/FILE).unlink()
    for name in who: (home/name/'Aufnahme 1.mp4').rename(home/name/'film.mp4')
    with pytest.raises(BadInput, match=r'Zeiten\.csv: its rows are about .*Aufnahme 1\.mp4.: give that'): look(home)


def test_names_in_either_form_of_unicode(folder):
    for p in (folder/'ben').iterdir(): p.rename(p.with_stem(unicodedata.normalize('NFD', 'Schäftè')))
    (folder/'ben'/(unicodedata.normalize('NFD', 'Schäftè') + '.csv')).rename(folder/'ben'/'Schäftè.csv')
    found = init(folder)
    assert found.project.recordings[1].id == 'Schäftè'
    assert sessions(folder)[1].key == 'ben-Schäftè' and sessions(folder)[1].source.exists()


def test_one_labels_file_for_all(folder):
    for p in folder.rglob('*.csv'): p.unlink()
    for who in ('anna', 'ben', 'cem'): (folder/who/'box 1.mp4').rename(folder/f'{who}.mp4')
    for who in ('anna', 'ben', 'cem'): (folder/who).rmdir()
    rows = [f'{who}.mp4,{who.title()},0,4,cut\n{who}.mp4,{who.title()},4,9,glue' for who in ('cem', 'anna', 'ben')]
    (folder/'all labels.csv').write_text('video,person,start,end,label\n' + '\n'.join(rows) + '\n')
    found = init(folder)
    assert {(r.id, r.video) for r in found.project.recordings} == {(w, f'{w}.mp4') for w in ('anna', 'ben', 'cem')}
    assert len(sessions(folder)) == 3 and all(len(s.segments) == 2 for s in sessions(folder))


def test_a_frame_folder_is_a_recording(shared, tmp_path):
    frames = next((shared/'openpack-sample').rglob('frames/S*'))
    shutil.copytree(frames, tmp_path/'p'/'visit one')
    (tmp_path/'p'/'visit one.csv').write_text('start,end,label\n0,0.4,pick\n0.4,1,place\n')
    found = init(tmp_path/'p')
    assert [r.video for r in found.project.recordings] == ['visit one']
    assert sessions(tmp_path/'p')[0].open().info.n_frames == 15
    assert any('film another' in s for s in found.said)


def test_openpack_needs_no_init(mock, tmp_path):
    assert "is laid out as OpenPack's" in refusal(look, mock)
    assert 'vlmtemporal init' in refusal(sessions, tmp_path)


@pytest.fixture(scope='module')
def cooking(root, tmp_path_factory):
    source = root.parent/'shared'/'real-labels'
    if not source.is_dir(): pytest.skip('the labels of CaptainCook4D are not on this machine')
    folder = tmp_path_factory.mktemp('cooking')
    shutil.copy(source/'captaincook4d_step_annotations.csv', folder)
    return folder, init(folder), json.loads((source/'captaincook4d_person_split.json').read_text())


def test_captaincook_from_its_labels_alone(cooking):
    folder, found, _ = cooking
    assert len(found.project.recordings) == 384 and any('287' in s for s in found.said)
    rewrite(folder, 'overlaps: refuse', 'overlaps: later wins')
    every = sessions(folder)
    counted = [s.overlaps for s in every if s.overlaps]
    assert len(every) == 384 and sum(c['overlaps'] + c['rounded'] for c in counted) == 453
    assert all(s.source is None and s.segments for s in every)
    hours = sum(max(x.end for x in s.segments) - s.segments[0].start for s in every)/3600
    assert 90 < hours < 95


def test_captaincook_leaves_people_out(cooking):
    folder, found, split = cooking
    sides = {side: tuple(split[side]) for side in ('train', 'val', 'test')}
    assert {name for some in sides.values() for name in some} == {r.id for r in found.project.recordings}
    path = folder/'people.yaml'
    path.write_text(project_text(replace(found.project, split=sides, overlaps='later wins')))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert get_split(path, 'recordings', ()) == sides
    assert Project.load(path).split == sides


def test_splits_for_any_number():
    for n in range(1, 30):
        split = propose_split([Recording(f'r{i}') for i in range(n)])
        assert sum(map(len, split.values())) == n and all(split.values()) and len(split) == min(n, 3)


def test_what_is_no_file_is_refused(tmp_path):
    "A pipe, or zeros without end, would never be read; a name may be too long for any file."
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'zeros').symlink_to('/dev/zero')
    for name in ('pipe', 'zeros'):
        with pytest.raises(BadInput, match='neither a file nor a folder'): read_labels(tmp_path/name)
        with pytest.raises(BadInput, match='neither a file nor a folder'): read_yaml(tmp_path/name)
    (tmp_path/FILE).write_text(f'taxonomy: logistics\nrecordings:\n- {{id: a, labels: {"x"*300}}}\n')
    with pytest.raises(BadInput, match='there is no labels file'): sessions(tmp_path)


def test_large_yaml_is_refused(tmp_path):
    (tmp_path/FILE).write_bytes(b'a'*(2**23 + 1))
    with pytest.raises(BadInput, match='too many'): read_yaml(tmp_path/FILE)


def test_offsets_are_written_in_full(tmp_path):
    r = Recording('a', labels='a.csv', offset=12345.678, fps=29.97002997)
    text = project_text(Project(tmp_path/FILE, BUILT_IN['logistics'], (r,), dict(train=('a',)), 'logistics'))
    assert 'offset: 12345.678' in text and 'fps: 29.97002997' in text


def test_a_video_on_two_sides_is_told(tmp_path):
    entries = '- {id: a, video: v.mp4, labels: a.csv}\n- {id: b, video: ./v.mp4, labels: b.csv}\n'
    (tmp_path/FILE).write_text(f'taxonomy: logistics\nsplit: {{train: [a], test: [b]}}\nrecordings:\n{entries}')
    with pytest.warns(VLMTemporalWarning, match='is in train and test'): get_split(tmp_path, 'recordings', ['a', 'b'])


def test_study_of_a_folder_of_videos_and_labels(folder, cli):
    "One command on somebody's own footage: its recordings.yaml is made, and one group alone gets no interval."
    (folder/'kitchen.csv').write_text('start,end,label\n0,1,a\n')
    code, out, err = cli('study', folder, '--sampler', 'flow-inverse', '--seconds', 2, '--fps', 5, '--json')
    assert code == 0 and 'written: ' in err and 'recordings.yaml' in err and 'open: kitchen.csv' in err, err
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))
    assert (folder/'recordings.yaml').is_file() and found['unit'] == 'sessions' and 'too few' in found['ranges']
    assert all(r['recall']['0.25']['low'] is None and 0 <= r['recall']['0.25']['mean'] <= 1 for r in found['rows'])
    assert all(len(r['by_group']['0.25']) == found['sessions'] for r in found['rows'])
    assert cli('study', folder, '--sampler', 'uniform', '--seconds', 2, '--fps', 5)[0] == 0, 'and the second time'


def test_build_takes_the_sampler_of_the_project(folder, cli, tmp_path):
    "What recordings.yaml says counts where no option says otherwise."
    init(folder)
    rewrite(folder, 'seconds: 5, fps: 25, frames: 8', 'seconds: 2, fps: 5, frames: 3')
    rewrite(folder, 'sampler: uniform', 'sampler: difference')
    for n, more in enumerate(([], ['--sampler', 'random'])):
        code, _, err = cli('build', folder, tmp_path/f'{n}', '--workers', 1, *more)
        assert code == 0, err
        index = json.loads(next((tmp_path/f'{n}').glob('*/index.json')).read_text())
        assert index['frames']['sampler'] == ['difference', 'random'][n] and index['frames']['format'] == 2


def test_a_folder_of_openpack_that_is_not_whole(mock, tmp_path):
    for refused in (sessions, init): assert "one person's folder of OpenPack" in refusal(refused, mock/'U0101')
    shutil.copytree(mock/'U0101'/'kinect', tmp_path/'U0101'/'kinect')
    for refused in (sessions, init):
        assert 'add U0101/annotation/openpack-operations/S0100.csv' in refusal(refused, tmp_path)
    alone = next(tmp_path.rglob('*.mp4')).parent
    assert 'holds 1 video and no labels' in refusal(init, alone)


def table(rows): return 'start;end;label\n' + ''.join(f'{i},0;{i},9;{name}\n' for i, name in enumerate(rows))


def test_a_slip_of_the_fingers_is_a_question(folder):
    "A label of one row that is nearly one of many; names that differ in digits are none."
    (folder/'anna'/'box 1.csv').write_text(table(['Ware einlegen']*5 + ['Ware einlegn', 'Tape 2']))
    (folder/'ben'/'box 1.csv').write_text(table(['Tape 1']*5 + ['kleben ', 'Kleben', 'Kleben']))
    (folder/'cem'/'box 1.csv').write_text(table(['Ware einlegen']*4))
    found = init(folder)
    asked, = found.questions
    rows = '`Ware einlegn` (1 row, anna/box 1.csv, line 7) is nearly `Ware einlegen` (9 rows)'
    assert asked.startswith(f'{rows}: the same?')
    assert 'Kleben' in found.project.taxonomy.names and 'kleben' not in found.project.taxonomy.names


def test_what_becomes_of_the_taxonomy_is_said(folder, tmp_path):
    "A second look, operations that are old, and what a second build does."
    init(folder)
    assert 'recordings.yaml and taxonomy.yaml are made of the labels anew' in refusal(init, folder)
    (folder/FILE).unlink()
    (folder/'taxonomy.yaml').write_text((folder/'taxonomy.yaml').read_text() + '- name: solder\n')
    said = '\n'.join(init(folder).said)
    assert 'taxonomy.yaml was there and is used as it is' in said
    assert 'lists solder, which no label has anywhere' in said
    heard = []
    for seed in (0, 0, 1):
        with pytest.warns(VLMTemporalWarning, match='lists solder, which no label has anywhere'):
            build(folder, tmp_path/'out', 'train', UNIFORM, seed=seed, say=heard.append)
    assert ['holds just this already' in heard[0], 'train, made of other' in heard[1], len(heard)] == [True, True, 2]


def test_a_table_in_the_encoding_of_excel(folder):
    "The sentence begins with the cause; that no labels were found follows from it."
    for p in folder.rglob('*.csv'): p.unlink()
    (folder/'Tätigkeiten.csv').write_bytes('Datei;Start;Ende;Tätigkeit\nx;0;1;öffnen\n'.encode('cp1252'))
    message = refusal(init, folder)
    assert message.startswith(f'{folder}/Tätigkeiten.csv, line 1: byte 0xe4 cannot be read as utf-8; it is not UTF-8')
    assert 'in Excel: Save As, "CSV UTF-8"' in message


def test_work_in_a_log_is_a_line_a_minute(monkeypatch, capsys):
    "Here a minute is no time: every step has its line."
    from vlmtemporal import basics
    assert list(basics.progress([1, 2], 'cutting')) == [1, 2] and capsys.readouterr().err == ''
    monkeypatch.setattr(basics, '_EVERY', 0.)
    with basics.progress(None, 'cutting', 4) as bar: bar.update(3)
    assert capsys.readouterr().err.startswith('cutting: 3 of 4 after 0 min')


# a phone's videos and one table about all of them; then a person corrects one file and brings it back

PEOPLE = 'Anna', 'Bert', 'Cem', 'Dana', 'Eva', 'Finn'


def german(people, *changed):
    "Excel's table: a row of each step."
    rows = [f'VID_2026_{who}.mp4;{who};{a};{b};{name}' for who in people
            for a, b, name in (('0:00,00', '0:04,00', 'cut'), ('0:04,00', '0:08,50', 'glue'))]
    return '\n'.join(['Video;Person;Anfang;Ende;Arbeitsschritt', *rows, *changed]) + '\n'


@pytest.fixture
def phone(small, tmp_path):
    for who in PEOPLE: shutil.copy(small/'anna'/'box 1.mp4', tmp_path/f'VID_2026_{who}.mp4')
    (tmp_path/'Schritte.csv').write_text(german(PEOPLE))
    return tmp_path


def corrected(folder, who):
    write_labels(folder/f'VID_2026_{who}.eaf', [Segment('cut', 0, 5), Segment('glue', 5, 9)], 'elan',
                 recording=f'VID_2026_{who}', fps=25., duration=10.)


def test_a_corrected_file_keeps_everybody(phone):
    "Its rows taken out of the table, the person is read where the others stand in the names."
    (phone/'Schritte.csv').write_text(german(PEOPLE[:5]))
    corrected(phone, 'Finn')
    found = init(phone)
    assert [r.subject for r in found.project.recordings] == list(PEOPLE) and not found.questions
    assert found.project.by_person and found.project.split == dict(train=PEOPLE[:4], val=('Eva',), test=('Finn',))


def test_a_corrected_file_wins_over_a_table(phone):
    corrected(phone, 'Bert')
    (phone/'VID_2026_Bert.mp4').rename(phone/'other.mp4')
    (phone/'VID_2026_Bert.eaf').rename(phone/'other.eaf')
    (phone/'Schritte.csv').write_text((phone/'Schritte.csv').read_text().replace('VID_2026_Bert.mp4', 'other.mp4'))
    found = init(phone)
    who = {r.id: (r.subject, r.labels) for r in found.project.recordings}
    assert who['other'] == ('Bert', 'other.eaf') and len(who) == 6 # the table still says who is filmed
    assert 'other.eaf is named like its video, so its labels count for it, not those in Schritte.csv' in found.said
    corrected(phone, 'Anna')
    assert '--fresh' in refusal(init, phone)
    assert sum(r.labels.endswith('.eaf') for r in init(phone, fresh=True).project.recordings) == 2


def test_who_is_unknown_is_on_no_side(phone):
    "A sixth person may be one of the five."
    (phone/'Schritte.csv').write_text(german(PEOPLE[:5]))
    corrected(phone, 'Finn')
    for suffix in ('.mp4', '.eaf'): (phone/f'VID_2026_Finn{suffix}').rename(phone/f'new{suffix}')
    found = init(phone)
    subject = next(r.subject for r in found.project.recordings if r.id == 'new')
    assert found.rows[-1][:2] == ('new', '?') and subject not in str(found.project.split)
    assert any(q.startswith('new: nobody says who is filmed') and f'`{subject}`' in q for q in found.questions)
    assert {*PEOPLE[:5]} == {who for side in Project.load(phone).split.values() for who in side}


def test_two_tables_are_put_into_one(phone):
    shutil.copy(phone/'Schritte.csv', phone/'Schritte - Kopie.csv')
    problem, = look(phone).problems
    assert problem.startswith('VID_2026_Anna.mp4, VID_2026_Bert.mp4, VID_2026_Cem.mp4 and 3 more: have labels in ')
    assert problem.endswith('put the rows into one file, each once')


def test_swapped_times_are_a_question_and_unlabelled_time_is_said(phone):
    (phone/'Schritte.csv').write_text(german(PEOPLE, 'VID_2026_Anna.mp4;Anna;0:09,50;0:08,50;wrap'))
    found = init(phone)
    asked, = found.questions
    assert asked.startswith("Schritte.csv, line 14: 'wrap' ends before it starts (9.5 to 8.5 seconds)")
    assert 'counts as Nothing' in asked and asked in (phone/FILE).read_text()
    assert not any('line 14' in said for said in found.said)
    assert any(said.startswith('9.0 s of 60.0 s (15.0%) have no label and count as Nothing') for said in found.said)
    built = build(phone, phone/'shards', spec=UNIFORM)
    assert 'ends before it starts' in ' '.join(built[0].notes['Anna-VID_2026_Anna'])
    assert built[0].blank.startswith('6.0 s of 40.0 s (15.0%)')


def test_a_slip_that_costs_a_taxonomy_is_named(phone):
    text = german(PEOPLE).replace('cut', 'Tape').replace('glue', 'Pack')
    (phone/'Schritte.csv').write_text(text + 'VID_2026_Anna.mp4;Anna;0:08,50;0:09,50;Idle\n'
                                      'VID_2026_Bert.mp4;Bert;0:08,50;0:09,50;Final Chekc\n')
    asked = ' '.join(init(phone).questions)
    assert 'logistics knows every label but `Final Chekc`, nearly its `Final Check`' in asked
    assert 'null is Unknown' in asked
    (phone/'Schritte.csv').write_text((phone/'Schritte.csv').read_text().replace('Chekc', 'Check'))
    old = {name: (phone/name).read_bytes() for name in (FILE, 'taxonomy.yaml')}
    assert init(phone, fresh=True).project.taxonomy is LOGISTICS and not (phone/'taxonomy.yaml').exists()
    assert old == {name: (phone/f'{name}.old').read_bytes() for name in old}
    init(phone, fresh=True)
    assert (phone/f'{FILE}.old').read_bytes() == old[FILE] and (phone/f'{FILE}.old2').exists()


def test_a_table_that_cannot_be_read_is_named_with_its_separator(phone):
    text = (phone/'Schritte.csv').read_text()
    (phone/'Schritte.csv').write_text(text.replace('0:04,00', '0:04;00', 1))
    said = refusal(look, phone)
    assert 'holds 6 videos, and labels that cannot be read yet' in said and 'no labels' not in said
    assert 'Schritte.csv, line 2: 6 fields where the header has 5; fields are parted by a semicolon' in said


def test_shards_are_no_recordings(tmp_path):
    (tmp_path/'train').mkdir()
    (tmp_path/'train'/'index.json').write_text('{}')
    assert 'holds shards, which `build` wrote' in refusal(sessions, tmp_path)


def test_elan_finds_the_video_from_where_the_file_lies(phone):
    "An address with % for what an URL cannot hold, and the way from the folder of the .eaf; both are read back."
    video, out = phone/'VID_2026_Änne 1.mp4', phone/'sub'/'x.eaf'
    (phone/'VID_2026_Anna.mp4').rename(video)
    out.parent.mkdir()
    about = dict(recording=video.name, fps=25., duration=10., media=video.resolve())
    write_labels(out, [Segment('cut', 0, 5)], 'elan', **about)
    text = out.read_text()
    assert f'MEDIA_URL="{video.resolve().as_uri()}"' in text and 'file:///' in text
    assert 'RELATIVE_MEDIA_URL="../VID_2026_%C3%84nne%201.mp4"' in text
    assert read_labels(out).for_media(video).rows[0].name == 'cut'
