// How many small operations a second does the API take from JavaScript, with all of its checks?
//
// Each contender is one call on one page of a 4 GiB guest whose pages are all mapped, at a place that moves. zap: the
// page is present, and a fault maps it again in a round of its own; fault: the page is absent. Both stay within one
// 2 MiB table at a time, so that the boundary and the checks are what is measured, not cache misses (ranges.bench.ts has
// those). The peers have the same pages zapped and mapped, each by a walk for it alone: C within C, layout A in WebAssembly
// by a call from JavaScript with nothing to check.

import { Bench } from 'tinybench';
import type { Vm } from '../src/index.ts';
import type { Calls } from './peers/contender.ts';
import { mapAll, vmOf } from './peers/eptsim.ts';
import { compileLayoutA, LayoutA, WasmA } from './peers/layout-a-wasm.ts';
import { startNative } from './peers/native.ts';
import { type BenchContext, type Goal, median, type Row, ratiosOf, row, spreadOf } from './rows.ts';
import { GIB, type Guest, PAGE } from './workloads.ts';

const PAGES = 512;
const ROUNDS = 40;
const BATCH = 200;

interface Asked {
  contender: string;
  goal: Goal | null;
  note: string;
  /** What a contender of the operation took, in nanoseconds; null if it had no part. */
  nsOf(contender: string): number | null;
}

/** Zaps `npages` from each first gfn one by one, then faults them in again one by one. */
function callsOf(vm: Vm, firsts: Uint32Array, npages: number): Calls {
  const vcpu = vm.vcpus[0];
  let leafs = 0;
  let zapMs = 0;
  let mapMs = 0;
  for (const first of firsts) {
    const start = performance.now();
    for (let gfn = first; gfn < first + npages; gfn++) {
      if (vm.unmapGfnRange({ slot: 0, start: gfn, end: gfn + 1 })) leafs++;
    }
    const middle = performance.now();
    for (let gfn = first; gfn < first + npages; gfn++) leafs += vcpu.access({ gpa: gfn * PAGE, kind: 'write' }).done;
    zapMs += middle - start;
    mapMs += performance.now() - middle;
  }
  return { zapNs: zapMs * 1e6, mapNs: mapMs * 1e6, leafs };
}

export default async function calls({ quick, native, say }: BenchContext): Promise<Row[]> {
  const guest: Guest = { bytes: 4 * GIB, density: 'full', leaves: '4k' };
  const vm = vmOf(guest);
  const vcpu = vm.vcpus[0];
  let sink = 0;
  const zapAll = () => void vm.unmapGfnRange({ slot: 0, start: 0, end: guest.bytes / PAGE });
  const rows: Row[] = [];
  const put = (operation: string, samples: number[], { contender, goal, note, nsOf }: Asked) => {
    const nsPerOperation = median(samples);
    rows.push(
      row({
        question: 'calls',
        guestBytes: guest.bytes,
        operation,
        contender,
        planes: 1,
        nsPerOperation,
        ...ratiosOf(nsPerOperation, nsOf),
        spread: spreadOf(samples),
        samples: samples.length,
        perSecond: 1e9 / nsPerOperation,
        goal,
        note,
      }),
    );
  };

  // Zaps and faults take turns over a moving window of pages, so that each finds what it needs; contenders alternate.
  const { process, peers } = startNative({ native, say });
  const tables = new WasmA(new LayoutA(await compileLayoutA()), 'tdp_iter');
  const windows = Uint32Array.from({ length: BATCH }, (_, batch) => ((batch * 37) % 2048) * PAGES);
  mapAll(vm, guest.bytes);
  const contenders: { name: string; calls(npages: number): Promise<Calls> }[] = [
    ...peers,
    tables,
    { name: 'eptsim', calls: async (npages) => callsOf(vm, windows, npages) },
  ];
  const found = contenders.map(() => ({ zaps: [] as number[], faults: [] as number[] }));
  const rounds = quick ? ROUNDS / 4 : ROUNDS;
  try {
    for (const peer of [...peers, tables]) {
      await peer.build(guest);
      await peer.fill('zap');
      await peer.use(windows);
    }
    for (let round = -rounds; round < rounds; round++) {
      for (let turn = 0; turn < contenders.length; turn++) {
        const at = (turn + rounds + round) % contenders.length;
        const { zapNs, mapNs, leafs } = await contenders[at].calls(PAGES);
        if (leafs !== 2 * BATCH * PAGES) throw new Error(`calls: ${contenders[at].name} changed ${leafs} leaves`);
        if (round < 0) continue;
        found[at].zaps.push(zapNs / (BATCH * PAGES));
        found[at].faults.push(mapNs / (BATCH * PAGES));
      }
    }
  } finally {
    process?.quit();
  }
  for (const [operation, key, ours, theirs] of [
    ['zap-4KiB', 'zaps', 'unmapGfnRange() of a mapped page', 'a walk for one page'],
    ['fault-4KiB', 'faults', 'access() of an unmapped page', 'a walk for one page'],
  ] as const) {
    const nsOf = (name: string) => {
      const at = contenders.findIndex((one) => one.name === name);
      return at < 0 ? null : median(found[at][key]);
    };
    contenders.forEach(({ name }, at) => {
      put(operation, found[at][key], {
        contender: name,
        goal: name === 'eptsim' ? 'small operations from JS, full API with its checks' : null,
        note: name === 'eptsim' ? ours : name === tables.name ? `${theirs}, called from JavaScript` : theirs,
        nsOf,
      });
    });
  }

  // The rest changes nothing that the next call would miss: tinybench times it as it stands.
  mapAll(vm, guest.bytes);
  const bench = new Bench({ time: quick ? 50 : 500, warmupTime: quick ? 20 : 200 });
  const wide = 1000;
  let at = 0;
  const next = () => {
    at = (at + 1) % (guest.bytes / PAGE);
    return at;
  };
  const each = (work: () => number | boolean) => () => {
    for (let count = 0; count < wide; count++) sink += Number(work());
  };
  bench
    .add(
      'access-4KiB',
      each(() => vcpu.access({ gpa: next() * PAGE, kind: 'write' }).done),
    )
    .add(
      'test-age-4KiB',
      each(() => vm.testAgeGfn({ slot: 0, start: next(), end: at + 1 })),
    )
    .add(
      'spte',
      each(() => vm.spte(next()).accessed),
    )
    .add(
      'stat',
      each(() => vm.stat('gfns_zapped')),
    );
  await bench.run();
  for (const { name, result } of bench.tasks) {
    if (!('latency' in result)) throw new Error(`calls: ${name}: ${result.state}`);
    const { latency } = result;
    const ns = (ms: number) => (ms * 1e6) / wide;
    rows.push(
      row({
        question: 'calls',
        guestBytes: guest.bytes,
        operation: name,
        contender: 'eptsim',
        nsPerOperation: ns(latency.p50),
        spread: [ns(latency.p50 - latency.mad), ns(latency.p50 + latency.mad)],
        samples: latency.samplesCount,
        perSecond: 1e9 / ns(latency.p50),
        note: 'tinybench; spread is the median absolute deviation',
      }),
    );
  }
  zapAll();
  if (!Number.isFinite(sink)) throw new Error('calls: nothing was done');
  return rows;
}
