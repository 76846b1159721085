// A GiB of 4K leaves that are all alike is one entry, and zaps of whole leaf tables leave it one entry with a plane: a bit
// for each table. Whatever is done to such a guest is held against an array of its pages, visits against arithmetic.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createVmSync, type Vm } from '../../src/index.ts';
import { isDebugBuild, PAGE } from '../support/make-vm.ts';
import { RUNS, SEED, TIMEOUT_MS } from './world.ts';

const GIB_PAGES = 2 ** 18;
const PAGES = 2 * GIB_PAGES + 3 * 512;
const HVA = 2 ** 40;
const NUM_RUNS = Math.ceil(RUNS / 25);

const ABSENT = 1 << 16;
const WRITABLE = 1 << 3;
const ACCESSED = 1 << 4;
const all = Float64Array.from({ length: PAGES }, (_, gfn) => gfn);

interface Model {
  vm: Vm;
  /** What sptes() must give for each page. */
  codes: Uint32Array;
  /** The code of a page that was just written. */
  young: number;
  isLogged: boolean;
}

function newModel(isTraced: boolean): Model {
  const vm = createVmSync({ memory: PAGES * PAGE, debug: isDebugBuild, ...(isTraced && { traceRecords: 65_536 }) });
  vm.host.mmap({ hva: HVA, length: PAGES * PAGE, kind: 'shmem' });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: PAGES * PAGE, userspaceAddr: HVA });
  vm.host.access({ hva: HVA, length: PAGES * PAGE, write: true });
  vm.vcpus[0].preFaultMemory({ gpa: 0, size: PAGES * PAGE });
  vm.vcpus[0].access({ gpa: 0, size: PAGES * PAGE, kind: 'write' });
  if (isTraced) vm.trace();
  const codes = vm.sptes(all);
  return { vm, codes, young: codes[0], isLogged: false };
}

interface Range {
  start: number;
  end: number;
}
// Mostly whole tables, in the first GiB or the second, or across; sometimes all of a GiB, sometimes any pages.
const range: fc.Arbitrary<Range> = fc
  .record({
    place: fc.nat(PAGES / 512 - 1),
    tables: fc.oneof({ weight: 6, arbitrary: fc.constant(1) }, fc.integer({ min: 2, max: 700 })),
    shape: fc.oneof({ weight: 12, arbitrary: fc.constant('tables') }, fc.constantFrom('gib', 'pages', 'inside')),
    first: fc.nat(511),
    last: fc.nat(511),
  })
  .map(({ place, tables, shape, first, last }) => {
    if (shape === 'gib') return { start: place < 512 ? 0 : GIB_PAGES, end: place < 512 ? GIB_PAGES : 2 * GIB_PAGES };
    const start = place * 512;
    if (shape === 'inside') return { start: start + Math.min(first, last), end: start + Math.max(first, last) + 1 };
    const end = Math.min(start + tables * 512, PAGES);
    return shape === 'pages' ? { start: start + first, end: Math.max(end - last, start + first + 1) } : { start, end };
  });

type Step =
  | { do: 'zap' | 'age' | 'test-age' | 'zap-gfn-range' | 'in-pieces'; range: Range }
  | { do: 'zap-yielding'; range: Range; part: number }
  | { do: 'zap-ranges'; places: number[] }
  | { do: 'fault' | 'log' | 'no-log' | 'snapshot'; gfn: number };
const weighted = (weight: number, arbitrary: fc.Arbitrary<Step>) => ({ weight, arbitrary });
const rangeStep = (name: 'zap' | 'age' | 'test-age' | 'zap-gfn-range' | 'in-pieces') =>
  range.map((found): Step => ({ do: name, range: found }));
const pageStep = (name: 'fault' | 'log' | 'no-log' | 'snapshot') =>
  fc.nat(PAGES - 1).map((gfn): Step => ({ do: name, gfn }));
const step = fc.oneof(
  weighted(10, rangeStep('zap')),
  weighted(
    4,
    fc
      .array(
        fc.record({ table: fc.nat(PAGES / 512 - 2), off: fc.nat(511), isAligned: fc.nat(11).map((one) => one !== 0) }),
        { minLength: 1, maxLength: 80 },
      )
      .map((all): Step => {
        return {
          do: 'zap-ranges',
          places: all.map(({ table, off, isAligned }) => table * 512 + (isAligned ? 0 : off)),
        };
      }),
  ),
  weighted(
    3,
    fc.record({ range, part: fc.nat(999) }).map((found): Step => ({ do: 'zap-yielding', ...found })),
  ),
  weighted(3, rangeStep('age')),
  weighted(3, rangeStep('test-age')),
  weighted(2, rangeStep('zap-gfn-range')),
  weighted(2, rangeStep('in-pieces')),
  weighted(2, pageStep('fault')),
  weighted(1, pageStep('log')),
  weighted(1, pageStep('no-log')),
  weighted(1, pageStep('snapshot')),
);

const isLeaf = (code: number) => (code & 7) === 4;

/** Makes the pages of a range absent. Returns how many were there. */
function clear({ codes }: Model, { start, end }: Range): number {
  let leafs = 0;
  for (let gfn = start; gfn < end; gfn++) {
    if (isLeaf(codes[gfn])) leafs++;
    codes[gfn] = ABSENT;
  }
  return leafs;
}

const VISITS = ['entries_visited_l1', 'entries_visited_l2', 'entries_visited_l3', 'entries_visited_l4'] as const;
const zappedOf = (vm: Vm) => vm.stat('leafs_zapped_direct_4k');
const visitsOf = (vm: Vm) => VISITS.map((name) => vm.stat(name));

/** Entries of each level that a walk of a range visits where every table is linked. */
const visitsIn = ({ start, end }: Range) =>
  [0, 9, 18, 27].map((shift) => Math.floor((end - 1) / 2 ** shift) - Math.floor(start / 2 ** shift) + 1);

/** Does one step in the VM and in the model; what the VM answered must be what the model says. */
function take(model: Model, asked: Step, isTraced: boolean): void {
  const { vm, codes } = model;
  const visits = visitsOf(vm);
  const zapped = zappedOf(vm);
  const visited = () => visitsOf(vm).map((count, at) => count - visits[at]);
  switch (asked.do) {
    case 'zap':
    case 'zap-gfn-range':
    case 'in-pieces': {
      const leafs = clear(model, asked.range);
      const { start, end } = asked.range;
      if (asked.do === 'zap-gfn-range') {
        vm.zapGfnRange(start, end);
      } else if (asked.do === 'zap') {
        expect(vm.unmapGfnRange({ slot: 0, ...asked.range })).toBe(leafs !== 0);
      } else {
        const pieces = vm.steps({ budget: 300 }, () => vm.unmapGfnRange({ slot: 0, ...asked.range }));
        for (let before = vm.stat('entries_visited'), isDone = false; !isDone; ) {
          isDone = pieces.next().done === true;
          expect(vm.stat('entries_visited') - before).toBeLessThanOrEqual(300);
          before = vm.stat('entries_visited');
        }
      }
      expect(zappedOf(vm) - zapped).toBe(leafs);
      if (asked.do !== 'zap-gfn-range') expect(visited()).toEqual(visitsIn(asked.range));
      if (isTraced && vm.traceDropped === 0) {
        const gone = vm.trace().flatMap((event) => (event.name === 'spte_changed' ? [event] : []));
        expect(gone.reduce((sum, { count }) => sum + count, 0)).toBe(leafs);
        for (const { gfn, count } of gone) expect(gfn >= start && gfn + count <= end).toBe(true);
      }
      break;
    }
    case 'zap-yielding': {
      const { start, end } = asked.range;
      // A walk never yields where it starts: it would never end.
      if (end - start > 1) vm.yieldAt(start + 1 + Math.floor(((end - start - 1) * asked.part) / 1000));
      const leafs = clear(model, asked.range);
      expect(vm.unmapGfnRange({ slot: 0, ...asked.range })).toBe(leafs !== 0);
      // The walk goes on from the root: one entry of each level is passed twice.
      expect(visited()).toEqual(visitsIn(asked.range).map((entries) => entries + (end - start > 1 ? 1 : 0)));
      break;
    }
    case 'zap-ranges': {
      const starts = Float64Array.from(asked.places);
      const expected = asked.places.map((start) => clear(model, { start, end: start + 512 }));
      const found = vm.unmapGfnRanges({ slot: 0, starts, npages: 512, look: starts });
      expect([...found.leafs]).toEqual(expected);
      expect([...found.sptes]).toEqual(expected.map(() => ABSENT));
      const each = [...starts].map((start) => visitsIn({ start, end: start + 512 }));
      expect(visited()).toEqual([0, 1, 2, 3].map((at) => each.reduce((sum, counts) => sum + counts[at], 0)));
      break;
    }
    case 'age':
    case 'test-age': {
      let young = 0;
      const before = vm.stat('leafs_aged');
      for (let gfn = asked.range.start; gfn < asked.range.end; gfn++) {
        if (!isLeaf(codes[gfn]) || (codes[gfn] & ACCESSED) === 0) continue;
        young++;
        if (asked.do === 'age') codes[gfn] &= ~ACCESSED;
      }
      const call = asked.do === 'age' ? 'ageGfn' : 'testAgeGfn';
      expect(vm[call]({ slot: 0, ...asked.range })).toBe(young !== 0);
      if (asked.do !== 'age') break;
      expect(vm.stat('leafs_aged') - before).toBe(young);
      expect(visited()).toEqual(visitsIn(asked.range));
      break;
    }
    case 'fault':
      vm.vcpus[0].access({ gpa: asked.gfn * PAGE, kind: 'write' });
      codes[asked.gfn] = model.young;
      break;
    case 'log':
    case 'no-log': {
      const flags = asked.do === 'log' ? 1 : 0;
      vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: PAGES * PAGE, userspaceAddr: HVA, flags });
      if (flags === 1 && !model.isLogged) {
        for (let gfn = 0; gfn < PAGES; gfn++) if (isLeaf(codes[gfn])) codes[gfn] &= ~WRITABLE;
      }
      model.isLogged = flags === 1;
      break;
    }
    case 'snapshot':
      vm.restore(vm.snapshot());
      break;
  }
  if (isTraced) vm.trace();
}

test(
  `${NUM_RUNS} guests of whole GiBs: zaps of whole leaf tables, and what is done among them, are done page by page`,
  () => {
    let leafsZapped = 0;
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 14 }), fc.boolean(), (steps, isTraced) => {
        const model = newModel(isTraced);
        const { vm } = model;
        const tables = vm.stat('tables_allocated') - vm.stat('tables_freed');
        for (const asked of steps) {
          take(model, asked, isTraced);
          const found = vm.sptes(all);
          const wrong = found.findIndex((code, gfn) => code !== model.codes[gfn]);
          if (wrong >= 0) expect.fail(`gfn ${wrong} after ${asked.do}: ${found[wrong]}, not ${model.codes[wrong]}`);
        }
        expect(vm.check()).toEqual([]);
        expect(vm.stat('pages_4k')).toBe(model.codes.filter(isLeaf).length);
        const runs = vm.leafs();
        expect(runs.reduce((sum, { count }) => sum + count, 0)).toBe(model.codes.filter(isLeaf).length);
        for (const { gfn, count } of runs) {
          expect(isLeaf(model.codes[gfn]) && isLeaf(model.codes[gfn + count - 1])).toBe(true);
        }
        // Zaps unlink no table; the slot's end takes them all, and every block comes back.
        expect(vm.stat('tables_allocated') - vm.stat('tables_freed')).toBe(tables);
        leafsZapped += zappedOf(vm);
        const zapped = zappedOf(vm);
        vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: HVA });
        expect(zappedOf(vm) - zapped).toBe(model.codes.filter(isLeaf).length);
        expect(vm.leafs()).toEqual([]);
        vm.destroy();
      }),
      { numRuns: NUM_RUNS, ...SEED },
    );
    expect(leafsZapped).toBeGreaterThan(NUM_RUNS * 512);
  },
  TIMEOUT_MS,
);
