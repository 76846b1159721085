// How many small operations a second does the API take from JavaScript, with all of its checks?
//
// Each contender is one call on one page of a 4 GiB guest whose pages are all mapped, at a place that moves. zap: the
// page is present, and a fault maps it again in a round of its own; fault: the page is absent. Both stay within one
// 2 MiB table at a time, so that the boundary and the checks are what is measured, not cache misses (ranges.bench.ts has
// those).

import { Bench } from 'tinybench';
import { mapAll, vmOf } from './peers/eptsim.ts';
import { type BenchContext, type Goal, median, type Row, row, spreadOf } from './rows.ts';
import { GIB, type Guest, PAGE } from './workloads.ts';

const PAGES = 512;
const ROUNDS = 40;
const BATCH = 200;

export default async function calls({ quick }: BenchContext): Promise<Row[]> {
  const guest: Guest = { bytes: 4 * GIB, density: 'full', leaves: '4k' };
  const vm = vmOf(guest);
  const vcpu = vm.vcpus[0];
  const zapAll = () => void vm.unmapGfnRange({ slot: 0, start: 0, end: guest.bytes / PAGE });
  const rows: Row[] = [];
  const put = (operation: string, samples: number[], goal: Goal | null, note: string) => {
    const nsPerOperation = median(samples);
    rows.push(
      row({
        question: 'calls',
        guestBytes: guest.bytes,
        operation,
        contender: 'eptsim',
        planes: 1,
        nsPerOperation,
        spread: spreadOf(samples),
        samples: samples.length,
        perSecond: 1e9 / nsPerOperation,
        goal,
        note,
      }),
    );
  };

  // Zaps and faults take turns over a moving window of pages, so that each finds what it needs.
  let sink = 0;
  const zaps: number[] = [];
  const faults: number[] = [];
  const rounds = quick ? ROUNDS / 4 : ROUNDS;
  mapAll(vm, guest.bytes);
  for (let round = -rounds; round < rounds; round++) {
    let zapNs = 0;
    let faultNs = 0;
    for (let batch = 0; batch < BATCH; batch++) {
      const first = ((batch * 37) % 2048) * PAGES;
      const start = performance.now();
      for (let gfn = first; gfn < first + PAGES; gfn++) {
        if (vm.unmapGfnRange({ slot: 0, start: gfn, end: gfn + 1 })) sink++;
      }
      const middle = performance.now();
      for (let gfn = first; gfn < first + PAGES; gfn++) sink += vcpu.access({ gpa: gfn * PAGE, kind: 'write' }).done;
      const end = performance.now();
      zapNs += (middle - start) * 1e6;
      faultNs += (end - middle) * 1e6;
    }
    if (round < 0) continue;
    zaps.push(zapNs / (BATCH * PAGES));
    faults.push(faultNs / (BATCH * PAGES));
  }
  if (sink !== 2 * rounds * BATCH * PAGES * 2) throw new Error(`calls: ${sink} operations did something`);
  const goal: Goal = 'small operations from JS, full API with its checks';
  put('zap-4KiB', zaps, goal, 'unmapGfnRange() of a mapped page');
  put('fault-4KiB', faults, goal, 'access() of an unmapped page');

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
