// How large is the engine, and how long until a VM is there?
//
// The first compile and instance happen once a process: each sample is a process of its own.

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import { api } from './peers/eptsim.ts';
import { type BenchContext, median, type Row, row, spreadOf } from './rows.ts';
import { TIB } from './workloads.ts';

const FIRST = `
  import { readFileSync } from 'node:fs';
  const bytes = readFileSync('dist/eptsim.wasm');
  const memory = new WebAssembly.Memory({ initial: 2048, maximum: 2048 });
  // V8 collects garbage when so much memory is made, in turns with what comes next: that is no part of this row.
  await new Promise((resolve) => setTimeout(resolve, 50));
  const start = performance.now();
  const module = new WebAssembly.Module(bytes);
  const instance = new WebAssembly.Instance(module, { env: { memory, pause() {}, abort() {} } });
  const ms = performance.now() - start;
  if (instance.exports.LAYOUT_HASH === undefined) throw new Error('no engine');
  console.log(ms);
`;

const IMPORT = `
  const start = performance.now();
  const { createVm } = await import(process.cwd() + '/dist/index.js');
  const ms = performance.now() - start;
  if (createVm === undefined) throw new Error('no API');
  console.log(ms);
`;

const IMPORT_AND_CREATE = `
  const start = performance.now();
  const { createVm } = await import(process.cwd() + '/dist/index.js');
  const vm = await createVm({ memory: ${TIB} });
  const ms = performance.now() - start;
  if (vm.dead) throw new Error('the VM is dead');
  console.log(ms);
`;

/** The milliseconds that `program` prints, in nanoseconds. */
function inFreshProcess(program: string): number {
  return Number(execFileSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8' })) * 1e6;
}

export default async function start({ quick, say }: BenchContext): Promise<Row[]> {
  const wasm = readFileSync('dist/eptsim.wasm');
  const bytes = gzipSync(wasm, { level: 9 }).length;
  const first = Array.from({ length: quick ? 3 : 15 }, () => inFreshProcess(FIRST));
  const imported = Array.from({ length: quick ? 3 : 15 }, () => inFreshProcess(IMPORT));
  const whole = Array.from({ length: quick ? 3 : 5 }, () => inFreshProcess(IMPORT_AND_CREATE));
  const create = Array.from({ length: quick ? 3 : 15 }, () => {
    const begun = performance.now();
    const vm = api.createVmSync({ memory: TIB });
    const ns = (performance.now() - begun) * 1e6;
    if (vm.dead) throw new Error('start: the VM is dead');
    return ns;
  });
  say(`engine: ${wasm.length} bytes, ${bytes} in gzip`);
  const common = { question: 'start', contender: 'eptsim' } as const;
  return [
    row({
      ...common,
      operation: 'size-gzip',
      bytes,
      goal: 'wasm size, gzip',
      note: 'dirty logging, aging and vendors are in: 20 KiB is the limit',
    }),
    row({
      ...common,
      operation: 'first-instance',
      nsPerOperation: median(first),
      spread: spreadOf(first),
      samples: first.length,
      goal: 'first compile + instance in Node',
    }),
    row({
      ...common,
      operation: 'import',
      nsPerOperation: median(imported),
      spread: spreadOf(imported),
      samples: imported.length,
    }),
    row({
      ...common,
      guestBytes: TIB,
      operation: 'create-vm',
      nsPerOperation: median(create),
      spread: spreadOf(create),
      samples: create.length,
      goal: 'createVm of a 1 TiB guest',
    }),
    row({
      ...common,
      guestBytes: TIB,
      operation: 'import-and-create-vm',
      nsPerOperation: median(whole),
      spread: spreadOf(whole),
      samples: whole.length,
      note: 'await createVm() in a process of its own, from the import on',
    }),
  ];
}
