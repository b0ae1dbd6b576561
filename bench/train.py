"""Chapter 2's speed and memory: our trainer beside the recipe that everyone writes, one run, one card.

    python bench/train.py TOKENIZER [--tables main,off,counts,profile] [--rows stock:2,ours:8:fused=false] [--steps 6]
                          [--model FOLDER] [--out FILE.json] [--minutes 9] [--unsloth FILE --unsloth-site FOLDER]

Qwen2.5-VL-3B's architecture with random weights (they cost the same as trained ones; TOKENIZER is a folder with the
real tokenizer), or any checkpoint; NF4, LoRA r=16 without dropout, 8 pictures of 336x336 an example, 16 examples an
optimiser step, fp16, memory capped at what a T4 has, without the attention kernels that a T4 lacks. Every row is a
process of its own on the same examples in the same order, and few of them, so that later epochs are measured too.

A row is `how:micro-batch` and perhaps settings of `TrainConfig`: `ours:8:fused=false:kept_layers=12`. `stock` is TRL's
trainer as everyone sets it up, with float32 adapters, without which fp16 dies; `ours` is this library's, `sdpa` ours
with transformers' own attention, `unsloth` the program that --unsloth names; `ours:best` is cut up as `preflight`
chooses. `replay=false` takes the CUDA graph of the tower away, which a T4 does not get, `gib=80` allows so much memory,
and `processes=2` runs two. A setting that this version does not have is said and passed over. Tables:

    main     stock, ours and Unsloth at some micro-batches: seconds in the first epoch and later, memory, losses
    off      ours with one piece after the other switched off
    losses   20 steps: how far the losses are from stock's
    cuts     micro-batch by layers that are not computed twice
    pieces   --rows alone
    counts   operations and bytes of an example by torch's own formulas, and what they would cost on a T4
    profile  kernels of a warm step in groups
    two      one process and two, each with a GPU of its own

With --out what is finished is kept in a file, and the next call goes on; no row begins that would end after --minutes.
"""
import argparse, json, os, re, statistics, subprocess, sys, tempfile, time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np

from sampling import table

T4 = 14.56 # GiB that a 16 GB card has
OPERANDS = dict(mm=2, bmm=2, addmm=3, baddbmm=3) # of products, of which torch's formulas want to know nothing else
COSTLESS = ('_unsafe_view', 'empty', 'empty_like', 'new_empty', 'empty_strided')
ARITHMETIC, BYTES = .4*65e12, .8*320e9 # a second: shares of a T4's data sheet that are assumed
SCHEDULE = 20 # steps that the learning rate is planned for, however many a row takes


def full_size(path: Path, tokenizer: Path):
    "Write a checkpoint of the 3B architecture with random weights, once."
    import torch
    from transformers import (PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration,
                              Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor)
    from vlmtemporal.backbones import bundled_model
    if (path/'config.json').exists(): return
    text = dict(hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
                num_key_value_heads=2, vocab_size=151936, rope_theta=1e6, max_position_embeddings=128000,
                rope_scaling={'type': 'mrope', 'mrope_section': [16, 24, 24]}, tie_word_embeddings=True)
    vision = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=2048, patch_size=14,
                  spatial_merge_size=2, temporal_patch_size=2, window_size=112, fullatt_block_indexes=[7, 15, 23, 31])
    ids = dict(image_token_id=151655, video_token_id=151656, vision_start_token_id=151652, vision_end_token_id=151653)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device('cuda' if torch.cuda.is_available() else 'cpu'):
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(path)
    tok = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer/'tokenizer.json'), eos_token='<|im_end|>',
                                  pad_token='<|endoftext|>')
    images = Qwen2VLImageProcessor(min_pixels=28*28*4, max_pixels=336*336)
    template = (bundled_model()/'chat_template.jinja').read_text()
    Qwen2_5_VLProcessor(image_processor=images, tokenizer=tok, video_processor=Qwen2VLVideoProcessor(),
                        chat_template=template).save_pretrained(path)


def examples(path: Path, n: int, split: str = 'train', who: str = 'U0101'):
    "Shards of noise, which is what costs a JPEG decoder and a vision tower as much as anything."
    from vlmtemporal.clips import Answer
    from vlmtemporal.frames import FrameSpec
    from vlmtemporal.operations import LOGISTICS
    from vlmtemporal.shards import Example, encode, write_shards
    g = np.random.default_rng(0)
    def example(i):
        start, end = sorted(g.choice(125, 2, replace=False).tolist())
        now, after = g.choice(LOGISTICS.names, 2).tolist()
        frames, indices = g.integers(0, 255, (8, 336, 336, 3), dtype=np.uint8), np.sort(g.choice(125, 8, replace=False))
        answer = Answer(now, start, end, after)
        return Example(f'{who}-S0100-{i:03d}a', frames, indices, answer, f'{who}-S0100', float(i), 125, 62.5)
    write_shards(path, ((e.key, encode(e)) for e in map(example, range(n))),
                 dict(split=split, taxonomy='logistics', frames=FrameSpec('uniform').to_dict(), people=[who],
                      config='bench'))


def stock(model: str, shards, out: Path, config, rows):
    "The recipe that everyone writes."
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer
    from vlmtemporal.backbones import BACKBONES
    from vlmtemporal.kernels import checkpointing_arguments
    from vlmtemporal.trainer import training_set
    gpu = torch.cuda.is_available()
    dtype = torch.float16 if gpu else torch.float32
    bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=dtype)
    m = AutoModelForImageTextToText.from_pretrained(
        model, quantization_config=bnb, dtype=dtype, device_map={'': 0 if gpu else 'cpu'}, attn_implementation='sdpa')
    args = SFTConfig(
        output_dir=str(out), max_steps=config.max_steps, learning_rate=config.learning_rate, lr_scheduler_type='cosine',
        per_device_train_batch_size=config.micro_batch, gradient_accumulation_steps=config.accumulation,
        max_grad_norm=config.max_grad_norm, save_strategy='no', logging_steps=1, seed=config.seed, fp16=gpu, bf16=False,
        use_cpu=not gpu, **checkpointing_arguments(True, SFTConfig), dataloader_num_workers=4 if gpu else 0,
        max_length=None, remove_unused_columns=False, dataset_kwargs=dict(skip_prepare_dataset=True), report_to=[],
        disable_tqdm=True)
    lora = LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout,
                      task_type='CAUSAL_LM', target_modules=BACKBONES['qwen2.5-vl'].lora_targets)
    trainer = SFTTrainer(model=m, args=args, train_dataset=training_set(shards, rows), peft_config=lora,
                         processing_class=AutoProcessor.from_pretrained(model))
    for p in trainer.model.parameters():
        if p.requires_grad: p.data = p.data.float()
    return trainer


def parsed(row: str) -> tuple[str, int | str, dict[str, str]]:
    "The recipe of a row, its micro-batch (or 'best') and its settings."
    how, micro, *settings = row.split(':')
    return how, int(micro) if micro.isdigit() else micro, dict(s.split('=', 1) for s in settings)


def config_of(micro: int, effective: int, settings: dict, steps: int):
    "The run of a row. Exits when it asks for a setting that this version does not have."
    from vlmtemporal.trainer import TrainConfig, train_config
    known = {f.name for f in fields(TrainConfig)}
    if unknown := sorted(settings.keys() - known): raise SystemExit(f'no setting {", ".join(unknown)} in this version')
    asked = dict(max_steps=max(SCHEDULE, steps), micro_batch=micro, accumulation=effective//micro, warmup=0,
                 lora_dropout=0, validate_steps=0) | settings
    return train_config(settings=[f'{k}={v}' for k, v in asked.items()])


def as_on_a_t4(gib: float = T4):
    "Its memory, or so much, its number format and the attention kernels that it has."
    import torch
    import vlmtemporal.trainer # noqa: F401, and with it all of chapter 2
    if not torch.cuda.is_available(): return
    torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))
    torch.cuda.set_per_process_memory_fraction(gib*2**30/torch.cuda.get_device_properties(0).total_memory)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False) # nor these kernels
    for name, module in list(sys.modules.items()):
        if name.startswith('vlmtemporal.') and hasattr(module, 'compute_dtype'):
            module.compute_dtype = lambda: torch.float16 # a T4 has no bf16


def counter():
    "A mode in which torch's operations are counted, by torch's own formulas, and the bytes that they read and write."
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry
    def size(x) -> int: # an expanded tensor is no larger than what it shows
        held = x.untyped_storage().nbytes() if x.device.type != 'meta' else 0
        return min(x.numel()*x.element_size(), held)
    def bytes_of(values) -> int: return sum(size(x) for x in tree_leaves(values) if isinstance(x, torch.Tensor))
    def is_view(op) -> bool:
        return any(r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns)
    in_place = {f'{name}_': flop_registry[getattr(torch.ops.aten, name)] for name in ('addmm', 'baddbmm')}
    class Counter(TorchDispatchMode):
        inside = False
        def __init__(self):
            super().__init__()
            self.flops = self.bytes = self.seconds = 0.
            self.ops = defaultdict(float)
        def add(self, name: str, flops: float, moved: float):
            self.flops, self.bytes = self.flops + flops, self.bytes + moved
            self.seconds += max(flops/ARITHMETIC, moved/BYTES)
            self.ops[name] += moved
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs, Counter.inside = kwargs or {}, True
            try: out = func(*args, **kwargs)
            finally: Counter.inside = False
            name = func.overloadpacket.__name__
            if is_view(func) or name in COSTLESS: return out
            formula = flop_registry.get(func.overloadpacket) or in_place.get(name)
            flops, more = (formula(*args[:OPERANDS.get(name)], out_val=out), 0) if formula else _known(name, args)
            self.add(name, flops, bytes_of((args, kwargs)) + bytes_of(out) + more)
            return out
    _count_triton(Counter, bytes_of)
    return Counter


def _known(name: str, args) -> tuple[float, float]:
    "Operations, and bytes that do not show, of what torch has no formula for."
    if name.startswith('_scaled_dot_product_flash_attention_for_cpu'):
        backward = name.endswith('backward')
        q, k = args[backward], args[backward + 1]
        return (10 if backward else 4)*q.shape[0]*q.shape[1]*q.shape[2]*k.shape[2]*q.shape[3], 0
    if name == 'gemm_4bit': # bitsandbytes' product with NF4 weights, which it unpacks to 16 bits: written and read
        out, weights = args[2][0], args[2][0]*args[2][1]
        return 2*args[0].numel()*out, 2*2*weights
    return 0, 0


def _count_triton(mode, bytes_of):
    "Let Triton's kernels be counted, too, unless they run inside an operation that is."
    try: from triton.runtime.jit import JITFunction
    except ImportError: return
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
    run = JITFunction.run
    def counted(self, *args, warmup=False, **kwargs):
        for m in _get_current_dispatch_mode_stack():
            if isinstance(m, mode) and not warmup and not mode.inside:
                m.add(f'triton {self.__name__}', 0., bytes_of((args, kwargs)))
        return run(self, *args, warmup=warmup, **kwargs)
    JITFunction.run = counted


GROUPS = { # of kernels, by their names; the first that fits
    'attention': r'fmha|flash|mem_eff|attention|sdpa|scaled_dot',
    'matrix products, unaligned': r'(gemm|cutlass|xmma|nvjet).*align[12](?!\d)|align[12](?!\d).*gemm',
    'matrix products': r'gemm|gemv|cutlass|xmma|nvjet|splitK|\bmm\b|addmm|bmm|linear',
    'de-quantising': r'dequant',
    'optimizer': r'multi_tensor|foreach|adam',
    'copies and casts': r'copy|Memcpy|Memset|CatArray|cat\b|fill|clone|_to_\b',
    'element-wise, sums, indices': r'elementwise|reduce|softmax|norm|index|gather|scatter|nll|sort|scan|at::native',
    'our own (Triton)': r'^\w+$',
}


def group_of(kernel: str) -> str: return next((g for g, p in GROUPS.items() if re.search(p, kernel)), 'other')


def busy(spans: list[tuple[float, float]]) -> float:
    "How long at least one of these runs."
    total = end = 0.
    for a, b in sorted(spans):
        total += max(b - max(a, end), 0.)
        end = max(end, b)
    return total


def profiled(prof, seconds: float) -> dict:
    "Milliseconds and number of kernels by group, the longest kernels, and the share of the step without any."
    from torch.autograd import DeviceType
    on_gpu = [e for e in prof.events() if e.device_type == DeviceType.CUDA]
    if on_gpu: rows = [(e.name, e.time_range.start, e.time_range.end) for e in on_gpu]
    else: rows = [(f'at::native::{e.name}', 0, e.self_cpu_time_total) for e in prof.events()]
    groups, kernels = defaultdict(lambda: [0., 0]), defaultdict(lambda: [0., 0])
    for name, a, b in rows:
        for key, into in ((group_of(name), groups), (name[:90], kernels)):
            into[key][0] += (b - a)/1e3
            into[key][1] += 1
    idle = 1 - busy([(a, b) for _, a, b in rows])/1e6/seconds if on_gpu else 0.
    longest = sorted(kernels.items(), key=lambda item: -item[1][0])[:15]
    return dict(seconds=seconds, idle=round(idle, 3), groups={k: [round(ms, 1), n] for k, (ms, n) in groups.items()},
                longest=[[name, round(ms, 1), n] for name, (ms, n) in longest])


class Watch:
    "Clock, waiting, and what else a row wants to know of some steps of a trainer."
    def __init__(self, trainer, steps: int, kind: str):
        import torch
        from transformers import TrainerCallback
        self.stamps, self.waits, self.found = [], [], {}
        self.kind, self.gpu = kind, torch.cuda.is_available()
        self.watched = {1: 'first epoch', steps - 1: 'later'} if kind != 'run' else {} # steps after the very first
        class Callback(TrainerCallback):
            def on_step_end(_, args, state, control, **__):
                if self.gpu: torch.cuda.synchronize()
                self.stamps.append(time.perf_counter())
                if state.global_step >= steps: control.should_training_stop = True
        trainer.add_callback(Callback())
        get, step = trainer.get_batch_samples, trainer.training_step
        def timed(*args, **kwargs):
            begin = time.perf_counter()
            got = get(*args, **kwargs)
            self.waits.append(time.perf_counter() - begin)
            return got
        def watched(*args, **kwargs):
            with self.watching(trainer.state.global_step): return step(*args, **kwargs)
        trainer.get_batch_samples, trainer.training_step = timed, watched
        self.counter = counter() if kind == 'counts' else None
    @contextmanager
    def watching(self, at: int):
        "Around one micro-batch of the step `at`."
        import torch
        name = self.watched.get(at)
        if not name or name in self.found:
            yield
            return
        if self.kind == 'counts':
            with self.counter() as c: yield
            most = sorted(c.ops.items(), key=lambda item: -item[1])[:12]
            self.found[name] = dict(flops=c.flops, bytes=c.bytes, seconds=c.seconds, most=most)
            return
        if self.gpu: torch.cuda.synchronize()
        act = torch.profiler.ProfilerActivity
        begin = time.perf_counter()
        with torch.profiler.profile(activities=[act.CUDA if self.gpu else act.CPU], acc_events=True) as prof:
            begin = time.perf_counter()
            yield
            if self.gpu: torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
        self.found[name] = profiled(prof, seconds)


def one(row: str, kind: str, model: str, shards: str, steps: int, effective: int, examples: int) -> dict:
    "Seconds of every optimiser step, memory and losses of one recipe; with `counts` and `profile` of one micro-batch."
    import torch
    from vlmtemporal import loading, tower_file, trainer as ours
    from vlmtemporal.processes import together
    from vlmtemporal.shards import Shards
    how, micro, settings = parsed(row)
    as_on_a_t4(float(settings.pop('gib', T4)))
    if how not in ('stock', 'ours', 'sdpa'): raise SystemExit(f'no recipe {how}; use stock, ours, sdpa or unsloth')
    settings.pop('processes', None)
    if settings.pop('replay', 'true') == 'false' or kind == 'counts': # torch counts nothing inside a CUDA graph
        tower_file.Replay = lambda compute: compute
    if how == 'sdpa': loading.attention_names = lambda: 'sdpa'
    if kind != 'run': effective, steps = micro, 4
    epoch = 2 if kind != 'run' else examples//effective # steps
    config = config_of(micro, effective, settings, SCHEDULE if kind == 'run' else examples)
    rows, begin = list(range(epoch*effective)), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        if 'MASTER_PORT' in os.environ: out = Path(shards).parent/f"run-{os.environ['MASTER_PORT']}" # one for all
        with together(Path(out)):
            if how == 'stock': trainer = stock(model, Shards(shards), Path(out), config, rows)
            else: trainer = ours.make_trainer(loading.load_model(model), Shards(shards), Path(out), config, rows=rows)
            trainer.args.save_strategy = 'no'
            watch = Watch(trainer, steps, kind)
            if watch.gpu: torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            trainer.train()
    peaks = (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
    peak = [round(f()/2**30, 2) for f in peaks] if watch.gpu else [0, 0]
    seconds = np.diff([start, *watch.stamps])
    losses = [round(h['loss'], 6) for h in trainer.state.log_history if 'loss' in h]
    trainer.accelerator.end_training() # several processes part in good order
    return dict(row=row, seconds=seconds.round(3).tolist(), waits=np.round(watch.waits[:len(seconds)], 3).tolist(),
                epoch=epoch, peak=peak, losses=losses, loading=round(start - begin, 1), found=watch.found,
                micro=micro)


def chosen(model: str, shards: str, effective: int) -> dict:
    "What `preflight` says."
    from vlmtemporal.train import preflight
    from vlmtemporal.trainer import TrainConfig
    as_on_a_t4()
    base = dict(micro_batch=1, accumulation=effective, lora_dropout=0)
    return preflight(shards, model, 16, TrainConfig(**base)).to_dict()


def in_a_process(*command: str, env: dict | None = None, program: str = __file__) -> dict | str:
    "What the last line of JSON of a program says; the end of its complaint when it fails."
    run = subprocess.run([sys.executable, program, *map(str, command)], capture_output=True, text=True, env=env)
    for line in run.stderr.splitlines():
        if 'VLMTemporalWarning' in line: print(f'    {line.strip()[:300]}', file=sys.stderr, flush=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith('{')]
    if lines: return json.loads(lines[-1])
    said = [line for line in run.stderr.strip().splitlines() if line.strip()]
    print(*said[-40:], sep='\n', file=sys.stderr, flush=True)
    # threads may write after the error
    why = [line for line in said if 'OutOfMemory' in line or 'out of memory' in line] or \
        [line for line in said if re.match(r'[\w.]*(Error|Exception|BadInput|Exit)\b', line)]
    return 'failed: ' + (why or said or ['?'])[-1][:160]


class Bench:
    "Rows that are run, or were run by an earlier call."
    def __init__(self, a, model: str, shards: Path):
        self.a, self.model, self.shards, self.begin = a, model, shards, time.monotonic()
        self.known = json.loads(a.out.read_text()) if a.out and a.out.exists() else {}
        self.longest = 30.
    def _keep(self, key: str, value):
        self.known[key] = value
        if self.a.out: self.a.out.write_text(json.dumps(self.known, indent=0))
    def _job(self, row: str, kind: str, steps: int) -> dict | str:
        a, (how, micro, settings) = self.a, parsed(row)
        if how == 'unsloth':
            if not a.unsloth: return 'give --unsloth'
            env = {**os.environ, **({'PYTHONPATH': str(a.unsloth_site)} if a.unsloth_site else {})}
            r = in_a_process(self.model, '--micro', micro, '--steps', steps, env=env, program=str(a.unsloth))
            if isinstance(r, str): return r
            return dict(row=row, seconds=r['s_per_step'], waits=[0.], epoch=len(r['s_per_step']), losses=[],
                        peak=[r['peak_alloc_gib'], r.get('peak_reserved_gib', 0)], found={}, loading=0, micro=micro)
        job = json.dumps(dict(row=row, kind=kind, model=self.model, shards=str(self.shards), steps=steps,
                              effective=a.effective, examples=a.examples))
        n = int(settings.get('processes', 1))
        return in_a_process(a.tokenizer, '--launch', n, '--job', job) if n > 1 else \
            in_a_process(a.tokenizer, '--job', job)
    def best(self) -> str:
        "The row that `preflight` chooses."
        if 'best' not in self.known:
            asked = json.dumps(dict(model=self.model, shards=str(self.shards), effective=self.a.effective))
            self._keep('best', in_a_process(self.a.tokenizer, '--chosen', asked))
        r = self.known['best']
        if isinstance(r, str): return r
        names = [n for n in ('gradient_checkpointing', 'kept_layers', 'tower_bits') if n in r]
        return ':'.join(['ours', str(r['micro_batch']), *(f'{n}={str(r[n]).lower()}' for n in names)])
    def get(self, row: str, kind: str = 'run', steps: int | None = None) -> dict | str | None:
        "What is known of a row; None when there is no time left to find out."
        steps = steps or self.a.steps
        for n in (steps, *range(steps + 1, 101)): # more steps say as much
            r = self.known.get(f'{kind} {row} {n}')
            if isinstance(r, dict) or (r and 'emory' in r): return r
        begin = time.monotonic()
        if self.a.minutes and begin - self.begin + self.longest > 60*self.a.minutes: return None
        if row == 'ours:best':
            row = self.best()
            return self.get(row, kind, steps) if row.startswith('ours') else row
        r = self._job(row, kind, steps)
        took = time.monotonic() - begin
        self.longest = max(self.longest, took)
        self._keep(f'{kind} {row} {steps}', r)
        said = r if isinstance(r, str) else json.dumps(r)[:400]
        print(f'{kind} {row}: {took:.0f} s', said, file=sys.stderr, flush=True)
        return r


NOT_YET = 'not yet: call again'

def _median(values: list[float]) -> float | None: return statistics.median(values) if values else None
def _text(x: float | None, form: str = '.2f') -> str: return '' if x is None else format(x, form)

def paces(r: dict) -> tuple[float | None, float | None]:
    "Median seconds of the first epoch's steps but the very first, and of the later epochs' steps."
    n = r['epoch']
    return _median(r['seconds'][1:n]), _median(r['seconds'][n:])


def step_table(bench: Bench, title: str, rows: list[str], steps: int | None = None):
    "Seconds, memory and losses of some rows; the first one that ran is what the others are compared with."
    out, first = [], None
    for row in rows:
        r = bench.get(row, steps=steps)
        if not isinstance(r, dict):
            out.append((row, r or NOT_YET, *['']*7))
            continue
        early, late = paces(r)
        first = first or (early, late or early, r['losses'])
        def times(a, b): return _text(a and b and a/b, '.1f')
        apart = max((abs(x - y)/abs(y) for x, y in zip(r['losses'], first[2])), default=None)
        n, seconds = r['epoch'], r['seconds']
        warm = [i for i in range(len(seconds)) if i % n] or [0] # a pass begins with the start of the loader's processes
        waiting = sum(r['waits'][i] for i in warm if i < len(r['waits']))/max(sum(seconds[i] for i in warm), 1e-9)
        out.append((r['row'], f'{seconds[0]:.1f}', _text(early), _text(late),
                    f'{times(first[0], early)} / {times(first[1], late or early)}',
                    '{:.2f} / {:.2f}'.format(*r['peak']), f'{waiting:.1%}', _text(apart, '.3%'),
                    f"{r['loading']:.0f}"))
    columns = ('recipe:micro-batch', 'first step, s', 'first epoch, s', 'later, s', 'times row 1, first / later',
               'GiB allocated / reserved', 'waiting for data', 'losses apart', 'loading, s')
    table(title, columns, out)


def counts_table(bench: Bench, rows: list[str]):
    "Operations and bytes of an example, and a T4's seconds for sixteen of them."
    out = []
    for row in rows:
        r = bench.get(row, 'counts')
        if not isinstance(r, dict):
            out.append((row, r or NOT_YET, *['']*6))
            continue
        for when, c in r['found'].items():
            tera, giga = c['flops']/r['micro']/1e12, c['bytes']/r['micro']/1e9
            paper = (16*x/r['micro'] for x in (c['flops']/ARITHMETIC, c['bytes']/BYTES, c['seconds']))
            out.append((r['row'], when, f'{tera:.3g}', f'{giga:.3g}', *(f'{s:.3g}' for s in paper)))
    table('Counted in one forward and backward pass, by torch; the T4 at 40% of 65 TFLOP/s and 80% of 320 GB/s',
          ('recipe:micro-batch', 'when', 'TFLOP an example', 'GB moved an example', 'T4 arithmetic, s a step of 16',
           'T4 memory, s', 'T4, the larger of both for each operation, s'), out)


def profile_table(bench: Bench, rows: list[str]):
    "Kernels in groups, scaled to sixteen examples."
    for row in rows:
        r = bench.get(row, 'profile')
        if not isinstance(r, dict):
            print(f'\nprofile of {row}: {r or NOT_YET}')
            continue
        for when, p in r['found'].items():
            scale = 16/r['micro']
            groups = sorted(p['groups'].items(), key=lambda item: -item[1][0])
            out = [(g, f'{ms*scale:.0f}', f'{n*scale:.0f}') for g, (ms, n) in groups]
            total = sum(ms for _, (ms, _) in groups)*scale
            table(f"{r['row']}, {when}: {p['seconds']*scale:.2f} s for 16 examples, {total:.0f} ms of kernels, "
                  f"{p['idle']:.1%} without any", ('kernels', 'ms', 'number'), out)
            for name, ms, n in p['longest']: print(f'    {ms*scale:7.1f} ms {n*scale:6.0f}  {name}')


def rows_of(a, name: str) -> list[str]:
    "The rows of a table, where --rows does not say."
    unsloth = [f'unsloth:{m}' for m in (8, 16)] if a.unsloth else []
    micro = min(8, a.effective)
    off = ('fused=false', 'tower_bits=16', 'tower_cache=0', 'replay=false', 'kept_layers=6')
    return dict(
        main=['stock:2', 'ours:2', 'ours:8', 'ours:16', 'ours:best', *unsloth],
        off=[f'ours:{micro}', *(f'ours:{micro}:{s}' for s in off)],
        losses=['stock:2', f'ours:{micro}', 'ours:best'],
        cuts=[f'ours:{m}:kept_layers={k}' for m in (2, 4, 8, 16) for k in (0, 12, 24, 36)],
        pieces=[], counts=['stock:2', 'ours:8', 'ours:16', 'ours:best'], profile=['ours:16', 'ours:best'],
        two=[f'ours:{micro}', f'ours:{micro}:processes=2'])[name]


def show(bench: Bench, name: str, rows: list[str]):
    "One table."
    if name == 'counts': return counts_table(bench, rows)
    if name == 'profile': return profile_table(bench, rows)
    titles = dict(main='An optimiser step of 16 examples', off='One piece switched off', cuts='Cuts', pieces='Rows',
                  losses='Losses over 20 steps', two='Processes')
    step_table(bench, titles[name], rows, max(bench.a.steps, SCHEDULE) if name == 'losses' else None)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('tokenizer', type=Path)
    p.add_argument('--tables', default='')
    p.add_argument('--rows', default='', help='rows of every table, by commas')
    p.add_argument('--steps', type=int, default=6)
    p.add_argument('--examples', type=int, help='in the data set; for half of the steps when absent, or for two')
    p.add_argument('--effective', type=int, default=16, help='examples in an optimiser step')
    p.add_argument('--model')
    p.add_argument('--out', type=Path)
    p.add_argument('--minutes', type=float, default=0, help='begin no row that would end later; 0: run all')
    p.add_argument('--unsloth', type=Path)
    p.add_argument('--unsloth-site', type=Path)
    for hidden in ('--write', '--job', '--chosen'): p.add_argument(hidden, help=argparse.SUPPRESS)
    p.add_argument('--launch', type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    a.tables = a.tables or ('pieces' if a.rows else 'main')
    a.examples = a.examples or a.effective*max(a.steps//2, 2)
    return a


def main():
    a = arguments()
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    if a.write: print(json.dumps(full_size(Path(a.write), a.tokenizer) or {}))
    elif a.launch:
        from vlmtemporal.train import launch
        raise SystemExit(launch([sys.executable, __file__, str(a.tokenizer), '--job', a.job], a.launch))
    elif a.job: print(json.dumps(one(**json.loads(a.job))))
    elif a.chosen: print(json.dumps(chosen(**json.loads(a.chosen))))
    else: all_tables(a)


def all_tables(a):
    "Write what is needed and show what is asked for."
    from vlmtemporal.backbones import resolve_model
    model = str(resolve_model(a.model) if a.model else Path(tempfile.gettempdir())/'qwen3b-random')
    if not a.model and (complaint := in_a_process(a.tokenizer, '--write', model)): raise SystemExit(complaint)
    with tempfile.TemporaryDirectory() as tmp:
        examples(Path(tmp)/'train', a.examples)
        bench = Bench(a, model, Path(tmp)/'train')
        for name in a.tables.split(','): show(bench, name, a.rows.split(',') if a.rows else rows_of(a, name))


if __name__ == '__main__': main()
