"Answers that are always valid, that agree with free text, and that no batch changes; a parser under fuzz."
import json, threading, time
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from vlmtemporal import decode
from vlmtemporal.loading import load_model
from vlmtemporal.basics import BadInput, VLMTemporalError, VLMTemporalWarning
from vlmtemporal.clips import Answer
from vlmtemporal.decode import answer_batches, constrained, generate, model_inputs
from vlmtemporal.operations import LOGISTICS, OPENPACK, TAXONOMIES
from vlmtemporal.prompts import ANSWER, answer_text, parse_answer
from vlmtemporal.shards import Example, find_split

NAMES = LOGISTICS.names
SLACK = 1e-3 # of log-probabilities that came in another batch: rounding, on any processor


def clip(seed, k=1, n=125, indices=None):
    "A clip of noise."
    g = np.random.default_rng(seed)
    k = min(k, n)
    frames, some = g.integers(0, 255, (k, 112, 112, 3), dtype=np.uint8), np.sort(g.choice(n, k, replace=False))
    return Example(str(seed), frames, some if indices is None else np.array(indices), None, 's', 0., n)


def digits(loaded):
    "The same model with a tokenizer that spells numbers digit by digit, as Qwen's does."
    from tokenizers import Regex, pre_tokenizers
    split = pre_tokenizers.Split(Regex(r'\d|[A-Z][a-z]+|[^\dA-Z]'), 'isolated')
    bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    loaded.processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes])
    return loaded


@pytest.fixture(scope='module')
def tiny(): return load_model('tiny', quantize=False)


@pytest.fixture(scope='module')
def spelt(): return digits(load_model('tiny', quantize=False))


def smaller(seed=0):
    "A smaller model yet, with random weights."
    from transformers import Qwen2_5_VLForConditionalGeneration
    loaded = load_model('tiny', quantize=False)
    config = deepcopy(loaded.model.config)
    text, vision = config.text_config, config.vision_config
    vars(text).update(hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2,
                      num_hidden_layers=3, layer_types=['full_attention']*3)
    vars(vision).update(depth=1, hidden_size=64, intermediate_size=128, out_hidden_size=128, num_heads=2)
    vision.fullatt_block_indexes, text.rope_parameters['mrope_section'] = [0], [4, 6, 6]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    return replace(loaded, model=model.eval())


def follow(x, ids):
    "A prompt with tokens after it."
    x['input_ids'], new = torch.cat([x['input_ids'], ids], 1), (0, ids.shape[1])
    x['mm_token_type_ids'] = pad(x['mm_token_type_ids'], new)
    x['attention_mask'] = pad(x['attention_mask'], new, value=1)
    return x


@pytest.fixture(scope='module')
def taught():
    "A model that has learnt the form, and something of which operation goes with a frame's number."
    loaded, g = smaller(), np.random.default_rng(0)
    model, tokenizer = loaded.model, loaded.processor.tokenizer
    model.model.visual.requires_grad_(False)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, betas=(.9, .95))
    for step in range(100):
        optimizer.param_groups[0]['lr'] = 3e-3*min(1, (step + 1)/10)
        c = g.integers(0, 4, 8)
        frames = [(int(9*k + g.integers(3)), int(100 + 5*k + g.integers(3))) for k in c]
        texts = [answer_text(Answer(NAMES[k], *f, NAMES[k + 1])) + '<|im_end|>' for k, f in zip(c, frames)]
        x = model_inputs(loaded, [clip(100*step + i, indices=[40*k]) for i, k in enumerate(c)], LOGISTICS)
        ids = torch.tensor(tokenizer(texts)['input_ids'])
        labels = pad(ids, (x['input_ids'].shape[1], 0), value=-100)
        loss = model(**follow(x, ids), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.)
        optimizer.step()
    return loaded


def after(loaded, example, text):
    "Log-probabilities of the token after the prompt and `text`, (V,), by one plain pass."
    ids = torch.tensor([loaded.processor.tokenizer(text)['input_ids']])
    with torch.no_grad(): out = loaded.model(**follow(model_inputs(loaded, [example], LOGISTICS), ids))
    return out.logits[0, -1].log_softmax(-1)


def token(loaded, text):
    (id,) = loaded.processor.tokenizer(text)['input_ids']
    return id


def span(loaded, example, answer):
    "Log-probability of an answer's start and end."
    before = ANSWER[0] + answer.dominant_operation + ANSWER[1]
    start, end = str(answer.start_frame), str(answer.end_frame)
    p, q = after(loaded, example, before), after(loaded, example, before + start + ANSWER[2])
    return float(p[token(loaded, start)] + q[token(loaded, end)])


def words(p): return p.answer and replace(p.answer, confidence=0.)


def test_valid_a_thousand_times(tiny, spelt):
    g, spans = np.random.default_rng(0), []
    models = ((tiny, 8), (spelt, 2), (smaller(1), 30), (smaller(2), 30), (smaller(3), 30))
    for loaded, batches in models:
        for b in range(batches):
            taxonomy = (LOGISTICS, OPENPACK)[b % 2]
            batch = [clip(10*b + i, 1 + i % 2, int(g.choice([2, 3, 12, 61, 125]))) for i in range(10)]
            for e, p in zip(batch, constrained(loaded, batch, taxonomy), strict=True):
                a = p.answer
                spans.append((a.start_frame, a.end_frame))
                assert p.key == e.key and {a.dominant_operation, a.anticipated_next_operation} <= set(taxonomy.names)
                assert 0 <= a.start_frame < a.end_frame < e.n_frames
                assert a.confidence == p.probabilities[a.dominant_operation] == max(p.probabilities.values())
                for q in (p.probabilities, p.next_probabilities):
                    assert tuple(q) == taxonomy.names and abs(sum(q.values()) - 1) < 1e-9
                parsed = parse_answer(answer_text(a), taxonomy, e.n_frames)
                assert parsed.stage == 'json' and parsed.answer == words(p)
    assert len(spans) == 1000 and len(set(spans)) > 50


def long_clips(n):
    return [clip(i, 2, (n, n, 7)[i]) for i in range(3)]


@pytest.mark.parametrize('seed, n', [(None, 300), (1, 300), (2, 1100)])
def test_numbers_in_two_steps_are_those_of_one(spelt, monkeypatch, seed, n):
    "Frames of long clips, spelt digit by digit: as if all numbers were asked at once."
    loaded = spelt if seed is None else digits(smaller(seed))
    found = constrained(loaded, long_clips(n), LOGISTICS)
    assert all(p.answer.start_frame < p.answer.end_frame < e.n_frames for p, e in zip(found, long_clips(n)))
    *_, start, end, _ = decode._template(loaded.processor.tokenizer, NAMES, n)[1]
    assert len(start.head.tokens) < 180 and len(end.tail.tokens) < 15 and len(start.paths) == n - 1
    with monkeypatch.context() as m:
        m.setattr(decode, 'MANY', 10**6)
        decode._template.cache_clear()
        at_once = constrained(loaded, long_clips(n), LOGISTICS)
    decode._template.cache_clear()
    assert [words(p) for p in found] == [words(p) for p in at_once]


def test_numbers_in_two_steps_by_rows(monkeypatch):
    loaded, examples = digits(smaller(1)), long_clips(260)[:1]
    in_trees = constrained(loaded, examples, LOGISTICS)
    monkeypatch.setattr(decode, '_ready', lambda loaded: False)
    assert words(constrained(loaded, examples, LOGISTICS)[0]) == words(in_trees[0])


def test_agrees_with_free_text_where_that_is_the_most_likely(shards):
    "Of a trained model, on clips of the mock data: the adapter that ships."
    loaded, test = load_model('tiny', 'tiny', merge=True), find_split(shards, 'test')
    clips, agreed = [test[i] for i in range(len(test))], []
    def run(decoder, **options):
        batches = [clips[i:i + 12] for i in range(0, len(clips), 12)]
        return [p for batch in batches for p in decoder(loaded, batch, LOGISTICS, **options)]
    names = [token(loaded, n) for n in LOGISTICS.names]
    texts, one_beam, two_beams = run(generate, max_new_tokens=60), run(constrained, beams=1), run(constrained)
    for e, free, one, two in zip(clips, texts, one_beam, two_beams):
        a = free.answer
        whole = free.parsed_by == 'json' and None not in (a.start_frame, a.anticipated_next_operation)
        if not whole or a.start_frame == a.end_frame: continue
        def best(text, e=e): return LOGISTICS.names[int(after(loaded, e, text)[names].argmax())]
        if best(ANSWER[0]) != a.dominant_operation: continue
        last = a.anticipated_next_operation
        if best(answer_text(a).removesuffix(last + ANSWER[-1])) != last: continue
        assert words(one) == a, 'the likeliest start and its likeliest end are what greedy generation writes'
        if words(two) != a: # only for a likelier pair of frames
            assert two.answer.dominant_operation == a.dominant_operation
            assert span(loaded, e, two.answer) > span(loaded, e, a) - SLACK
        agreed.append(a)
    assert len(agreed) >= .8*len(clips) and len(set(agreed)) >= 10, f'{len(agreed)} clips are too few to show anything'


def test_the_likeliest_pair_of_frames(taught):
    "Following every start is the search over all pairs; following two is never worse than following one."
    e = clip(7, n=30)
    best = constrained(taught, [e], LOGISTICS, beams=29)[0].answer
    before = ANSWER[0] + best.dominant_operation + ANSWER[1]
    starts = after(taught, e, before)
    pairs = {}
    for s in range(29):
        ends = after(taught, e, f'{before}{s}{ANSWER[2]}')
        for t in range(s + 1, 30): pairs[s, t] = float(starts[token(taught, str(s))] + ends[token(taught, str(t))])
    assert pairs[best.start_frame, best.end_frame] > max(pairs.values()) - SLACK
    one, two = (constrained(taught, [e], LOGISTICS, beams=w)[0].answer for w in (1, 2))
    assert pairs[one.start_frame, one.end_frame] < pairs[two.start_frame, two.end_frame] + SLACK


@pytest.mark.parametrize('kind', ['tiny', 'spelt'])
def test_a_batch_is_its_clips(kind, request):
    loaded = request.getfixturevalue(kind)
    clips = [clip(i, k, n) for i, (k, n) in enumerate([(8, 125), (1, 125), (3, 17), (5, 125), (1, 2), (2, 101)])]
    assert len(set(model_inputs(loaded, clips, LOGISTICS)['attention_mask'].sum(1).tolist())) >= 5
    batch = constrained(loaded, clips, LOGISTICS)
    single = [constrained(loaded, [e], LOGISTICS)[0] for e in clips]
    assert [words(p) for p in batch] == [words(p) for p in single] and [p.key for p in batch] == [e.key for e in clips]
    for kind in ('probabilities', 'next_probabilities'):
        p, q = (np.array([list(getattr(p, kind).values()) for p in x]) for x in (batch, single))
        assert np.allclose(p, q, atol=SLACK)


def test_a_batch_of_free_text_is_its_clips(taught):
    clips = [clip(i, k) for i, k in enumerate([4, 1, 2, 1])]
    batch = generate(taught, clips, LOGISTICS, 30)
    assert [p.text for p in batch] == [generate(taught, [e], LOGISTICS, 30)[0].text for e in clips]
    assert len({p.text for p in batch}) > 1


def test_a_model_that_is_deaf_to_masks_answers_the_same(taught):
    "It is noticed, and asked by ordinary calls."
    deaf = smaller()
    deaf.model.load_state_dict(taught.model.state_dict())
    hears = deaf.model.forward
    def forward(*args, attention_mask=None, **kwargs):
        flat = attention_mask is not None and attention_mask.ndim == 2
        return hears(*args, attention_mask=attention_mask if flat else None, **kwargs)
    deaf.model.forward = forward
    clips = [clip(i, k) for i, k in enumerate([1, 3])]
    with pytest.warns(VLMTemporalWarning, match='mask'): slow = constrained(deaf, clips, LOGISTICS)
    fast = constrained(taught, clips, LOGISTICS)
    assert [words(p) for p in slow] == [words(p) for p in fast]
    p, q = ([list(p.probabilities.values()) for p in x] for x in (slow, fast))
    assert np.allclose(p, q, atol=SLACK)


def test_numbers_that_are_none_are_an_error():
    broken = smaller()
    broken.model.model.language_model.norm.weight.data[0] = torch.nan
    with pytest.raises(VLMTemporalError, match='not finite'): constrained(broken, [clip(0)], LOGISTICS)


@pytest.mark.parametrize('which', ['tiny', 'digits', 'qwen'])
def test_what_is_fed_is_the_answer_as_it_is_taught(which, tiny, spelt, request):
    if which == 'qwen':
        from transformers import PreTrainedTokenizerFast
        path = request.getfixturevalue('shared')/'qwen2.5-tokenizer'/'tokenizer.json'
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    else: tokenizer = dict(tiny=tiny, digits=spelt)[which].processor.tokenizer
    g = np.random.default_rng(0)
    for taxonomy in TAXONOMIES.values():
        first, slots = decode._template(tokenizer, taxonomy.names, 125)
        for _ in range(300):
            a, s, t, z = choice = [int(g.integers(len(slot.paths))) for slot in slots]
            fed = [first]
            for slot, c in zip(slots, choice): fed = fed + slot.prefix + slot.paths[c]
            whole = tokenizer(answer_text(Answer(taxonomy.names[a], s, t + 1, taxonomy.names[z])))['input_ids']
            assert fed == whole[:len(fed)] and tokenizer.decode(whole[len(fed):]) in ('"}', '}')


PIECES = [
    *NAMES, *OPENPACK.names, 'tape', 'Tapes', 'repack', 'Juggling', 'wrap\u0130',
    '{', '}', '[', ']', ':', ',', '"', "'", '\\', '\n', ' ', '```', '```json\n', '\n```',
    '{"dominant_operation": "', 'dominant_operation', '"temporal_segment": ',
    '{"start_frame": ', '"end_frame": ', '"anticipated_next_operation": ', '"confidence": ', 'null', 'true', 'NaN',
    'Infinity', '-Infinity', '1e999', '-1', '3.7', '0', '12', '124', '125', '9'*5000, '\x00', '\ud800', '\u202e',
    '\\u0054ape', '{'*300, '['*2000]
VALUES = [None, True, -1, 0, 5, 60, 124, 125, 1e9, .5, 10**400, float('nan'), float('inf'),
          '', 'Tape', 'tape ', 'Tapes', ['Tape'], {}]


def fuzzed(g):
    "A text that is an answer, resembles one, or does not."
    value, piece = (lambda some=some: some[g.integers(len(some))] for some in (VALUES, PIECES))
    whole = dict(dominant_operation=str(g.choice(NAMES)) if g.random() < .7 else value(), confidence=value(),
                 temporal_segment=dict(start_frame=value(), end_frame=value()) if g.random() < .8 else value(),
                 anticipated_next_operation=value())
    text = json.dumps({k: v for k, v in whole.items() if g.random() < .9}, ensure_ascii=bool(g.integers(2)))
    kind = g.integers(4)
    if kind == 0: text = ''.join(piece() for _ in range(g.integers(0, 12)))
    for _ in range(g.integers(1, 6) if kind > 1 else 0):
        at, to = sorted(g.integers(0, len(text) + 1, 2))
        text = text[:at] + piece() + text[at if g.integers(2) else to:]
    texts = (text, f'Sure! ```json\n{text}\n``` {piece()}', f'I think {text} fits. {piece()}')
    return texts[g.choice(3, p=(.6, .2, .2))]


def test_parser_under_fuzz():
    g, seen = np.random.default_rng(0), {}
    for i in range(20000):
        text, taxonomy, n = fuzzed(g), (LOGISTICS, OPENPACK)[i % 2], (125, 61)[i % 3 == 0]
        parsed = parse_answer(text, taxonomy, n)
        a, stage = parsed.answer, parsed.stage
        seen[stage] = seen.get(stage, 0) + 1
        assert (a is None) == (stage == 'none')
        if a is None: continue
        for name in filter(None, (a.dominant_operation, a.anticipated_next_operation)):
            assert name in taxonomy.names and (name.casefold() in text.casefold() or '\\u' in text), (text, a)
        assert (a.start_frame is None) == (a.end_frame is None) and 0 <= a.confidence <= 1
        if a.start_frame is not None:
            assert type(a.start_frame) is type(a.end_frame) is int and 0 <= a.start_frame <= a.end_frame < n
        json.dumps(a.to_dict(), allow_nan=False)
    assert min(seen[s] for s in ('json', 'fenced', 'object', 'keywords', 'none')) > 200, seen


# ---- the next batch is made ready meanwhile --------------------------------------------------------------------------
def answers(loaded, clips, **options):
    return [p for _, some in answer_batches(loaded, clips, LOGISTICS, **options) for p in some]


@pytest.mark.parametrize('decoder', ['constrained', 'generate'])
def test_ahead_of_the_model_the_answers_are_the_same(taught, decoder):
    clips = [clip(i, 1 + i % 3, indices=None) for i in range(11)]
    plain = []
    for i in range(0, 11, 3): plain += decode.DECODERS[decoder](taught, clips[i:i + 3], LOGISTICS)
    for given in (clips, iter(clips)):
        found = answers(taught, given, decoder=decoder, batch=3)
        assert [(p.key, words(p), p.text) for p in found] == [(p.key, words(p), p.text) for p in plain]
        for p, q in zip(found, plain):
            assert list(p.probabilities) == list(q.probabilities)
            assert np.allclose(list(p.probabilities.values()), list(q.probabilities.values()), atol=SLACK)


def test_the_next_batch_is_made_while_the_model_works(monkeypatch):
    "The model's work ends only when the next batch has been made, and no more than one is made ahead."
    loaded, made, asked, most = smaller(), [threading.Event() for _ in range(4)], [], []
    def prepare(_, some, taxonomy, side):
        made[int(some[0].key)].set()
        return 'ready ' + some[0].key
    def work(_, some, taxonomy, inputs):
        i = int(some[0].key)
        assert inputs == f'ready {i}'
        assert i == 3 or made[i + 1].wait(20), 'nothing is made meanwhile'
        time.sleep(.05)
        most.append(sum(e.is_set() for e in made) - i)
        asked.append(i)
        return some
    monkeypatch.setattr(decode, 'model_inputs', prepare)
    monkeypatch.setitem(decode.DECODERS, 'constrained', work)
    assert [e.key for e in answers(loaded, [clip(i) for i in range(4)], batch=1)] == ['0', '1', '2', '3']
    assert asked == [0, 1, 2, 3]
    assert max(most) == 2


def test_what_goes_wrong_ahead_is_told(taught):
    "A clip that cannot be read: the batches before it are answered, then the error is the reader's."
    def read():
        for i in range(5): yield clip(i)
        raise BadInput('is damaged', 'shard')
    found = answer_batches(taught, read(), LOGISTICS, batch=2)
    assert [len(next(found)[1]) for _ in range(2)] == [2, 2]
    with pytest.raises(BadInput, match='is damaged'): next(found)
    left = answer_batches(taught, (clip(i) for i in range(100)), LOGISTICS, batch=2)
    next(left)
    left.close() # nobody waits for the rest
