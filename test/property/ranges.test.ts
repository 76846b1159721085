// Many ranges in one call are the calls one by one, and both are what a traced VM does, which goes entry by entry.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createVmSync, type Vm } from '../../src/index.ts';
import { isDebugBuild } from '../support/make-vm.ts';
import { newTarget, PAGE, type Sequence, sequence, type Target } from './commands.ts';
import {
  attempt,
  cleanUp,
  commandsOf,
  engineLeafs,
  isErrno,
  makeEngine,
  prepare,
  RUNS,
  SEED,
  sameBytes,
  sequenceText,
  TIMEOUT_MS,
} from './world.ts';

const NUM_RUNS = Math.ceil(RUNS / 5);
/** A VM for all, which is restored: a thousand take a third of a second. */
const GUESTS = RUNS * 10;

interface Ranges {
  isZap: boolean;
  slot: number;
  npages: number;
  places: number[];
  looks: number[] | null;
  selector: number;
}
const ranges: fc.Arbitrary<Ranges> = fc.record({
  isZap: fc.boolean(),
  slot: fc.nat(7),
  npages: fc.oneof(fc.constantFrom(1, 2, 16, 511, 512, 513), fc.integer({ min: 1, max: 1200 })),
  places: fc.array(fc.nat(1 << 20), { minLength: 1, maxLength: 60 }),
  looks: fc.option(fc.array(fc.nat(1 << 20), { minLength: 60, maxLength: 60 })),
  selector: fc.nat(31),
});

function ground(one: Sequence, isTraced: boolean): Target {
  const target = newTarget(makeEngine(one.config, isTraced), one.config);
  prepare(target);
  for (const command of commandsOf(one)) {
    attempt(target, command);
    if (isTraced) target.vm.trace();
  }
  // What the sequence left unmapped is mapped, in stretches: there is something to zap.
  for (const [index, { base, npages }] of target.slots.entries()) {
    for (let from = index; from < npages; from += 300) {
      const kind = index % 2 === 0 ? 'write' : 'read';
      try {
        target.vm.vcpus[0].access({ gpa: (base + from) * PAGE, kind, count: Math.min(200, npages - from) });
      } catch (error) {
        if (!isErrno(error)) throw error;
      }
    }
  }
  return target;
}

/** The calls as the API takes them: starts within the slot, at any place or, of every other, aligned to the length. */
function callsOf(target: Target, asked: Ranges) {
  const slot = target.slots[asked.slot % Math.max(target.slots.length, 1)];
  if (slot === undefined) return undefined;
  const npages = Math.min(asked.npages, slot.npages);
  const room = slot.npages - npages + 1;
  const starts = Float64Array.from(asked.places, (place, index) => {
    const at = slot.base + (place % room);
    const aligned = Math.ceil(slot.base / npages) * npages;
    return index % 2 === 1 && aligned + npages <= slot.base + slot.npages ? aligned : at;
  });
  const look =
    asked.looks &&
    Float64Array.from(
      starts,
      (start, index) =>
        start + (index % 3 === 0 ? asked.looks![index] % slot.npages : asked.looks![index] % (npages + 3)),
    );
  const { selector } = asked;
  return {
    slot: slot.id,
    asId: slot.asId,
    starts,
    npages,
    ...(look && { look }),
    attrFilter: selector & 3,
    mayBlock: (selector & 4) !== 0,
    onlyPrivate: (selector & 8) !== 0,
    onlyShared: (selector & 16) !== 0,
    arg: { attributes: selector & 1 ? 8 : 0 },
  };
}
type Calls = NonNullable<ReturnType<typeof callsOf>>;

const LEAFS = ['direct', 'mirror'].flatMap((root) => ['4k', '2m', '1g'].map((size) => `leafs_zapped_${root}_${size}`));
const changedBy = (vm: Vm, isZap: boolean): number =>
  (isZap ? LEAFS : ['leafs_aged']).reduce((sum, name) => sum + vm.stat(name as never), 0);

/** One call a range. Ends, as the call for all does, at the first that is refused. */
function oneByOne(vm: Vm, isZap: boolean, calls: Calls) {
  const { starts, npages, look, ...rest } = calls;
  const leafs: number[] = [];
  const sptes: number[] = [];
  let any = false;
  for (const [index, start] of starts.entries()) {
    const before = changedBy(vm, isZap);
    const range = { ...rest, start, end: start + npages };
    try {
      any = (isZap ? vm.unmapGfnRange(range) : vm.ageGfn(range)) || any;
    } catch (error) {
      return { refused: (error as { code: string }).code, done: index };
    }
    leafs.push(changedBy(vm, isZap) - before);
    if (look) sptes.push(vm.sptes(Float64Array.of(look[index]), undefined, rest.asId)[0]);
  }
  return { leafs, any, sptes };
}

function atOnce(vm: Vm, isZap: boolean, calls: Calls) {
  try {
    const { leafs, any, sptes } = isZap ? vm.unmapGfnRanges(calls) : vm.ageGfnRanges(calls);
    return { leafs: [...leafs], any, sptes: [...sptes] };
  } catch (error) {
    const { code, done } = error as { code: string; done?: number };
    return { refused: code, done: done ?? 0 };
  }
}

test(
  `${NUM_RUNS} states: ranges at once equal ranges one by one, with a trace and without`,
  () => {
    let zapped = 0;
    let looked = 0;
    fc.assert(
      fc.property(sequence as fc.Arbitrary<Sequence>, ranges, (one, asked) => {
        const plain = ground(one, false);
        const calls = callsOf(plain, asked);
        if (calls !== undefined) {
          const vm: Vm = plain.vm;
          const state = vm.snapshot();
          const expected = oneByOne(vm, asked.isZap, calls);
          const bytes = vm.snapshot();
          vm.restore(state);
          const found = atOnce(vm, asked.isZap, calls);
          expect(found, sequenceText(one)).toEqual(expected);
          expect(sameBytes(vm.snapshot(), bytes), `other bytes\n${sequenceText(one)}`).toBe(true);
          zapped += found.leafs?.reduce((sum, leafs) => sum + leafs, 0) ?? 0;
          looked += found.sptes?.filter((code) => (code & 7) === 4).length ?? 0;

          const traced = ground(one, true);
          expect(oneByOne(traced.vm, asked.isZap, calls), sequenceText(one)).toEqual(expected);
          expect(traced.vm.stats(), sequenceText(one)).toEqual(vm.stats());
          expect(engineLeafs(traced.vm), sequenceText(one)).toEqual(engineLeafs(vm));
          cleanUp(traced);
        }
        cleanUp(plain);
      }),
      { numRuns: NUM_RUNS, ...SEED },
    );
    // There was something to zap, and something left to see.
    expect(zapped).toBeGreaterThan(NUM_RUNS);
    expect(looked).toBeGreaterThan(NUM_RUNS / 10);
  },
  TIMEOUT_MS,
);

// GiBs: the tables that zaps leave alike fold, and the next GiB that needs one takes their memory.
const GIB_PAGES = 2 ** 18;
const GIBS = 3;
/** A gfn near a border of GiBs, or anywhere. */
const near = fc
  .tuple(fc.nat(GIBS), fc.oneof(fc.integer({ min: -600, max: 300 }), fc.nat(GIB_PAGES)))
  .map(([gib, offset]) => Math.min(Math.max(gib * GIB_PAGES + offset, 0), GIBS * GIB_PAGES - 1));
const across = fc.record({
  before: fc.array(fc.record({ isZap: fc.boolean(), from: near, to: near }), { maxLength: 3 }),
  /** Then of some GiBs all but so many pages at the end, which the ranges may zap. */
  emptied: fc.array(fc.record({ gib: fc.nat(GIBS - 1), but: fc.integer({ min: 1, max: 700 }) }), { maxLength: 2 }),
  starts: fc.oneof(fc.array(near, { minLength: 2, maxLength: 5 }), fc.array(near, { minLength: 1, maxLength: 70 })),
  npages: fc.oneof(fc.constantFrom(1, 16, 300, 511, 512, 513), fc.integer({ min: 1, max: 1200 })),
  isAligned: fc.boolean(),
  isZap: fc.constantFrom(true, true, true, false),
});

test(
  `${GUESTS} guests of some GiB: ranges across their borders, at once and one by one`,
  () => {
    const length = GIBS * GIB_PAGES * PAGE;
    const vm = createVmSync({ memory: length, debug: isDebugBuild, traceRecords: 0 });
    vm.host.mmap({ hva: 2 ** 40, length, kind: 'shmem' });
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: length, userspaceAddr: 2 ** 40 });
    vm.vcpus[0].preFaultMemory({ gpa: 0, size: length });
    vm.vcpus[0].access({ gpa: 0, kind: 'write', size: length });
    const full = vm.snapshot();
    let zapped = 0;
    fc.assert(
      fc.property(across, ({ before, emptied, starts, npages, isAligned, isZap }) => {
        vm.restore(full);
        for (const { isZap: zaps, from, to } of before) {
          const range = { slot: 0, start: Math.min(from, to), end: Math.max(from, to) + 1 };
          if (zaps) vm.unmapGfnRange(range);
          else vm.ageGfn(range);
        }
        for (const { gib, but } of emptied) {
          vm.unmapGfnRange({ slot: 0, start: gib * GIB_PAGES, end: (gib + 1) * GIB_PAGES - but });
        }
        const last = GIBS * GIB_PAGES - npages;
        const calls = {
          slot: 0,
          npages,
          starts: Float64Array.from(starts, (start) => Math.min(isAligned ? start - (start % npages) : start, last)),
          look: Float64Array.from(starts),
        };
        const state = vm.snapshot();
        const expected = oneByOne(vm, isZap, calls as Calls);
        const bytes = vm.snapshot();
        vm.restore(state);
        const found = atOnce(vm, isZap, calls as Calls);
        expect(found).toEqual(expected);
        expect(sameBytes(vm.snapshot(), bytes)).toBe(true);
        zapped += found.leafs?.reduce((sum, leafs) => sum + leafs, 0) ?? 0;
      }),
      { numRuns: GUESTS, ...SEED },
    );
    expect(zapped).toBeGreaterThan(GUESTS);
  },
  TIMEOUT_MS,
);
