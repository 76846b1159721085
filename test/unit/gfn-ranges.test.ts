// unmapGfnRanges() and ageGfnRanges(): what they answer, what they refuse, and where the way through whole groups of ranges
// must give way.

import { describe, expect, test } from 'vitest';
import { createVmSync, type KvmError, type KvmGfnRanges, type Vm } from '../../src/index.ts';
import { isDebugBuild, PAGE } from '../support/make-vm.ts';
import { randomFrom } from '../support/random.ts';

const GIB_PAGES = 2 ** 18;
const HVA = 2 ** 40;

/** Two slots of shmem side by side: 0 of `pages` from gfn 0, 1 of 512 behind it; all mapped and written. */
function vmOf(pages: number, vcpus = 1): Vm {
  const vm = createVmSync({ memory: (pages + 512) * PAGE, vcpus, debug: isDebugBuild });
  vm.host.mmap({ hva: HVA, length: (pages + 512) * PAGE, kind: 'shmem' });
  const place = (from: number, count: number) => ({
    guestPhysAddr: from * PAGE,
    memorySize: count * PAGE,
    userspaceAddr: HVA + from * PAGE,
  });
  vm.setUserMemoryRegion({ slot: 0, ...place(0, pages) });
  vm.setUserMemoryRegion({ slot: 1, ...place(pages, 512) });
  for (const vcpu of vm.vcpus) vcpu.run();
  vm.vcpus[0].preFaultMemory({ gpa: 0, size: (pages + 512) * PAGE });
  return vm;
}
/** `snapshot` in a memory of which so many blocks of 64 bytes were never used. */
function withUnusedBlocks(snapshot: Uint8Array, blocks: number): Uint8Array {
  const copy = snapshot.slice();
  const words = new Uint32Array(copy.buffer);
  // Control (assembly/control.ts) stands behind the header and the list of regions: arenaBlocks, arenaNext.
  const control = 8 + 2 * words[4];
  words[control + 6] = words[control + 7] + blocks;
  return copy;
}
const everyTable = (tables: number) => Float64Array.from({ length: tables }, (_, index) => index * 512);
const sum = (values: Iterable<number>) => [...values].reduce((total, value) => total + value, 0);
const meansLeaf = (code: number) => (code & 7) === 4;

function errorOf(call: () => unknown): KvmError {
  try {
    call();
  } catch (error) {
    return error as KvmError;
  }
  throw new Error('nothing was thrown');
}

describe('what many ranges answer', () => {
  test('the leaves of each, whether a flush is due, and the spte that each left at the gfn asked for', () => {
    const vm = vmOf(2048);
    const starts = Float64Array.of(0, 512, 100, 0);
    const found = vm.unmapGfnRanges({ slot: 0, starts, npages: 100, look: Float64Array.of(99, 612, 99, 2047) });
    expect([...found.leafs]).toEqual([100, 100, 100, 0]);
    expect(found.any).toBe(true);
    expect([...found.sptes].map(meansLeaf)).toEqual([false, true, false, true]);
    expect(vm.stat('leafs_zapped_direct_4k')).toBe(300);
    expect(vm.unmapGfnRanges({ slot: 0, starts, npages: 100 })).toMatchObject({ any: false, sptes: new Uint32Array() });
  });

  test('a 2M leaf goes whole for a part of it, and what of it was beyond the range is booked for that range', () => {
    const vm = createVmSync({ memory: GIB_PAGES * PAGE, debug: isDebugBuild });
    vm.host.mmap({ hva: HVA, length: GIB_PAGES * PAGE, kind: 'hugetlb2m' });
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: GIB_PAGES * PAGE, userspaceAddr: HVA });
    vm.vcpus[0].preFaultMemory({ gpa: 0, size: 8 * 512 * PAGE });
    // In the middle of a leaf, at its beginning, in one that is gone, where none was, at the end of one.
    const starts = Float64Array.of(512 + 100, 1024, 512, 9 * 512 + 5, 2048 - 16);
    const found = vm.unmapGfnRanges({ slot: 0, starts, npages: 16, look: Float64Array.of(512, 2047, 2048, 0, 1536) });
    expect([...found.leafs]).toEqual([1, 1, 0, 0, 1]);
    expect([...found.sptes].map((code) => `${meansLeaf(code)} ${code >>> 16}`)).toEqual([
      'false 2',
      'true 2',
      'true 2',
      'true 2',
      'false 2',
    ]);
    expect(vm.stat('leafs_zapped_direct_2m')).toBe(3);
    expect(vm.stat('pages_2m')).toBe(5);
    expect(vm.stat('gfns_zapped_outside_request')).toBe(3 * (512 - 16));
    expect(vm.losses().records.map(({ start, end, request }) => [start, end, request.start, request.end])).toEqual([
      [512, 612, 612, 628],
      [628, 1024, 612, 628],
      [1040, 1536, 1024, 1040],
      [1536, 2032, 2032, 2048],
    ]);
  });

  test('more ranges than cross the boundary together', () => {
    const vm = vmOf(8192);
    const starts = Float64Array.from({ length: 8192 }, (_, gfn) => gfn);
    const found = vm.unmapGfnRanges({ slot: 0, starts, npages: 1, look: starts });
    expect(sum(found.leafs)).toBe(8192);
    expect(found.sptes.some(meansLeaf)).toBe(false);
    expect(vm.stat('pages_4k')).toBe(512);
  });

  test('into arrays of the caller', () => {
    const vm = vmOf(1024);
    const into = { leafs: new Float64Array(2), sptes: new Uint32Array(2) };
    const starts = Float64Array.of(0, 512);
    const found = vm.ageGfnRanges({ slot: 0, starts, npages: 512, look: starts, into });
    expect(found.leafs).toBe(into.leafs);
    expect(found.sptes).toBe(into.sptes);
    // A pre-fault leaves A clear.
    expect([...into.leafs]).toEqual([0, 0]);
    vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'read' });
    vm.ageGfnRanges({ slot: 0, starts, npages: 512, into });
    expect([...into.leafs]).toEqual([1, 0]);
  });

  test('no ranges: nothing', () => {
    const vm = vmOf(1024);
    const before = vm.snapshot();
    expect(vm.unmapGfnRanges({ slot: 0, starts: new Float64Array(), npages: 1 }).any).toBe(false);
    expect(vm.stat('pages_4k')).toBe(1536);
    expect(vm.snapshot().length).toBe(before.length);
  });
});

describe('where ranges stop going by groups', () => {
  test('a range that empties the last table of 1 GiB folds it: those behind it still find what is there', () => {
    const [folded, single] = [vmOf(2 * GIB_PAGES), vmOf(2 * GIB_PAGES)];
    // The border falls into the middle of a group; behind it the next GiB takes the memory of the table that was folded.
    const starts = Float64Array.of(0, 0, 0, ...everyTable(512), GIB_PAGES, 0, 512, GIB_PAGES - 512, GIB_PAGES + 512);
    const found = folded.unmapGfnRanges({ slot: 0, starts, npages: 512, look: starts });
    const leafs = [...starts].map((start) => {
      const before = single.stat('gfns_zapped');
      single.unmapGfnRange({ slot: 0, start, end: start + 512 });
      return single.stat('gfns_zapped') - before;
    });
    expect([...found.leafs]).toEqual(leafs);
    expect(folded.stats()).toEqual(single.stats());
    expect(folded.memoryUsed).toBe(single.memoryUsed);
    expect(folded.check()).toEqual([]);
  });

  test('so does one that ends it on its way into the next, which may take the memory of the table', () => {
    const vm = vmOf(2 * GIB_PAGES);
    vm.unmapGfnRange({ slot: 0, start: 0, end: GIB_PAGES - 50 });
    const { leafs } = vm.unmapGfnRanges({ slot: 0, starts: Float64Array.of(GIB_PAGES - 100, 0), npages: 300 });
    expect([...leafs]).toEqual([250, 0]);
    expect(vm.stat('pages_4k')).toBe(GIB_PAGES - 200 + 512);
  });

  test('every table of a guest that was uniform, last first', () => {
    const vm = vmOf(GIB_PAGES);
    const starts = everyTable(512).reverse();
    expect(new Set(vm.unmapGfnRanges({ slot: 0, starts, npages: 512 }).leafs)).toEqual(new Set([512]));
    expect(vm.stat('pages_4k')).toBe(512);
  });

  /** What ranges of 16 gfns do at once and one by one, in a memory with `blocks` left. */
  function compareWith(vm: Vm, snapshot: Uint8Array, blocks: number, starts: Float64Array): void {
    const low = withUnusedBlocks(snapshot, blocks);
    const look = starts.map((start) => Math.max(start - 8, 0));
    vm.restore(low);
    const found = vm.unmapGfnRanges({ slot: 0, starts, npages: 16, look });
    const atOnce = vm.snapshot();
    vm.restore(low);
    for (const [index, start] of starts.entries()) {
      const before = vm.stat('gfns_zapped');
      vm.unmapGfnRange({ slot: 0, start, end: start + 16 });
      expect(found.leafs[index]).toBe(vm.stat('gfns_zapped') - before);
      expect(found.sptes[index]).toBe(vm.sptes(look.subarray(index, index + 1))[0]);
    }
    expect(Buffer.compare(vm.snapshot(), atOnce)).toBe(0);
  }

  test('memory that is too little for all of them at first', () => {
    const vm = vmOf(2 * GIB_PAGES);
    const random = randomFrom('low memory');
    const starts = Float64Array.from({ length: 2000 }, () => Math.floor(random() * (2 * GIB_PAGES - 16)));
    const snapshot = vm.snapshot();
    for (const blocks of [10_000, 12_000, 18_000, 24_000]) compareWith(vm, snapshot, blocks, starts);
  });

  test('memory that tables of other GiBs take, until fewer are left: what was found of a group is not the next one’s', () => {
    const vm = vmOf(10 * GIB_PAGES);
    // Else the first GiB is one entry when its ranges are looked up, and none of them is found.
    vm.unmapGfnRange({ slot: 0, start: 5, end: 6 });
    const starts = Float64Array.from({ length: 128 }, (_, index) => {
      if (index < 56) return index;
      return index < 64 ? (index - 55) * GIB_PAGES : 512 + index;
    });
    const snapshot = vm.snapshot();
    // Room for a call, and around what the ranges then need.
    const most = 64 * 128 + (128 + 24) * 9;
    for (let blocks = most + 100; blocks < most + 1200; blocks += 50) compareWith(vm, snapshot, blocks, starts);
  });

  test('a gfn to look at that lies in another table is read there', () => {
    const vm = vmOf(2048);
    const starts = Float64Array.of(0, 1024);
    const { sptes } = vm.unmapGfnRanges({ slot: 0, starts, npages: 512, look: Float64Array.of(1024, 513) });
    expect([...sptes].map(meansLeaf)).toEqual([true, true]);
  });

  test('an obsolete root that a vCPU still has loaded is zapped too', () => {
    // vCPU 0 maps through the new root; vCPU 1 still holds the obsolete one, which each walk visits as well.
    const [vm, twin] = [vmOf(2048, 2), vmOf(2048, 2)];
    for (const one of [vm, twin]) {
      one.writeParameter('nx_huge_pages', true);
      one.vcpus[0].run();
      one.vcpus[0].preFaultMemory({ gpa: 0, size: 2048 * PAGE });
    }
    const visited = vm.stat('entries_visited');
    vm.unmapGfnRanges({ slot: 0, starts: everyTable(4), npages: 512 });
    for (const start of everyTable(4)) twin.unmapGfnRange({ slot: 0, start, end: start + 512 });
    expect(vm.stats()).toEqual(twin.stats());
    expect(vm.stat('entries_visited') - visited).toBeGreaterThan(4 * 515);
  });
});

describe('what many ranges refuse, before the first is done', () => {
  const good: KvmGfnRanges = { slot: 0, starts: Float64Array.of(0, 512), npages: 512 };
  const cases: [name: string, bad: Record<string, unknown>, message: RegExp][] = [
    ['starts that are no Float64Array', { starts: [0, 512] }, /starts must be a Float64Array/],
    ['a length of 0', { npages: 0 }, /npages is 0: it must be within 1 and/],
    ['a start that is no integer', { starts: Float64Array.of(0, 0.5) }, /starts\[1\] is 0.5: it must be an integer/],
    ['a start below 0', { starts: Float64Array.of(0, -1) }, /starts\[1\] is -1: it must be within 0 and/],
    ['a start that no integer can be', { starts: Float64Array.of(2 ** 52) }, /start 0x10000000000000, .*EINVAL/],
    ['Infinity', { starts: Float64Array.of(0, -Infinity) }, /starts\[1\] is -Infinity/],
    ['a range longer than the slot', { npages: 1025 }, /start 0, end 1025\): EINVAL/],
    ['a look below 0', { look: Float64Array.of(0, -0.25) }, /look\[1\] is -0.25/],
    ['a look too large', { look: Float64Array.of(2 ** 52, 0) }, /look\[0\] is 4503599627370496/],
    ['NaN', { starts: Float64Array.of(Number.NaN) }, /starts\[0\] is NaN: it must be an integer/],
    ['a range behind the slot', { starts: Float64Array.of(0, 513) }, /start 513, end 1025\): EINVAL/],
    ['a slot that is none', { slot: 7 }, /unmapGfnRanges\(slot 7.*EINVAL/],
    ['look of another length', { look: new Float64Array(3) }, /look has 3 elements: .* each of the 2 ranges/],
    ['a look that is no gfn', { look: Float64Array.of(1, 1.5) }, /look\[1\] is 1.5: it must be an integer/],
    ['a root that is none', { root: 'shadow' }, /root is "shadow": it must be one of direct, mirror/],
    ['into too short', { into: { leafs: new Float64Array(1) } }, /into.leafs has 1 elements/],
    [
      'into without sptes',
      { look: good.starts, into: { leafs: new Float64Array(2) } },
      /into.sptes must be a Uint32Array/,
    ],
  ];
  test.each(cases)('%s', (_, bad, message) => {
    const vm = vmOf(1024);
    const before = vm.stats();
    expect(errorOf(() => vm.unmapGfnRanges({ ...good, ...bad } as KvmGfnRanges)).message).toMatch(message);
    expect(vm.stats()).toEqual(before);
  });

  test('a bad start behind those that cross together', () => {
    const vm = vmOf(8192);
    const starts = Float64Array.from({ length: 5000 }, (_, gfn) => gfn);
    starts[4999] = 8192;
    expect(errorOf(() => vm.unmapGfnRanges({ slot: 0, starts, npages: 1 })).message).toMatch(/start 0x2000/);
    expect(vm.stat('gfns_zapped')).toBe(0);
  });

  test('operations in pieces', () => {
    const vm = vmOf(1024);
    const steps = vm.steps({ budget: 10 }, () => vm.unmapGfnRanges(good));
    expect(errorOf(() => steps.next())).toMatchObject({ code: 'EINVAL', call: 'unmapGfnRanges' });
    expect(vm.stat('gfns_zapped')).toBe(0);
    expect(vm.unmapGfnRanges(good).any).toBe(true);
  });

  test('memory that ends on the way: the error tells how many were done', () => {
    const vm = vmOf(1024);
    const { call } = { call: () => vm.unmapGfnRanges({ slot: 0, starts: Float64Array.of(0, 1, 2, 3), npages: 1 }) };
    vm.failReservation(3);
    const error = errorOf(call);
    expect(error).toMatchObject({ code: 'ENOMEM', done: 2 });
    expect(error.message).toMatch(/2 of 4 ranges were done/);
    expect(vm.stat('gfns_zapped')).toBe(2);
  });

  test.each([1, 3])('memory that ends at range %i leaves every byte as the calls before it do', (nth) => {
    const states = [0, 1].map((oneByOne) => {
      const vm = vmOf(1024);
      vm.unmapGfnRange({ slot: 0, start: 5, end: 6 });
      // The last range to be asked for is the notifier's.
      vm.host.madvise({ hva: HVA + 9 * PAGE, length: PAGE, advice: 'DONTNEED' });
      const starts = [64, 128, 192];
      const calls = oneByOne
        ? starts.map((start) => () => vm.unmapGfnRange({ slot: 0, start, end: start + 16 }))
        : [() => vm.unmapGfnRanges({ slot: 0, starts: Float64Array.from(starts), npages: 16 })];
      const before = vm.snapshot();
      vm.failReservation(nth);
      for (const call of calls.slice(0, -1)) if (nth > 1) call();
      expect(errorOf(calls.at(-1)!).code).toBe('ENOMEM');
      if (nth === 1) expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
      return vm.snapshot();
    });
    expect(Buffer.compare(states[0]!, states[1]!)).toBe(0);
  });
});
