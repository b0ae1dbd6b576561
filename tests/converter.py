"""In the place of llama.cpp's convert_hf_to_gguf.py: its options, what it looks for, and how it names its file.

It writes no weights: what is tried with it is how the converter is called and what becomes of its files.
"""
import argparse, json, sys
from pathlib import Path

options = argparse.ArgumentParser()
options.add_argument('--outfile', type=Path, required=True)
options.add_argument('--outtype', choices=['f32', 'f16', 'bf16', 'q8_0', 'tq1_0', 'tq2_0', 'auto'], default='auto')
options.add_argument('--mmproj', action='store_true')
options.add_argument('model', type=Path)
args = options.parse_args()

needed = ['config.json', 'tokenizer.json', 'chat_template.jinja', 'processor_config.json']
if missing := [name for name in needed if not (args.model/name).is_file()]: sys.exit(f'lacks {missing}')
if not list(args.model.glob('*.safetensors')): sys.exit('lacks weights')
out = args.outfile.with_name(f'mmproj-{args.outfile.name}') if args.mmproj else args.outfile
architecture = json.loads((args.model/'config.json').read_text())['architectures']
out.write_bytes(b'GGUF' + json.dumps([args.outtype, args.mmproj, architecture]).encode())
