// The ring of events: what is read is always a prefix without holes, and what did not fit is counted.

import { describe, expect, test } from 'vitest';
import { createVmSync, type TraceEvent, type Vm } from '../../src/index.ts';
import { leafMeaning, spteMeaning } from '../../src/trace.ts';
import { isDebugBuild, makeVm, PAGE } from '../support/make-vm.ts';

/** Two slots' worth of calls that trace a few hundred events. */
function busy(traceRecords: number): Vm {
  const vm = makeVm({ traceRecords, slots: [{ startGfn: 0, npages: 512 }] });
  for (let round = 0; round < 10; round++) {
    vm.vcpus[0].access({ gpa: 0, kind: 'write', count: 8, stride: 2 * PAGE });
    vm.unmapGfnRange({ slot: 0, start: 0, end: 512 });
  }
  return vm;
}

describe('the ring', () => {
  test('is off without records', () => {
    const vm = busy(0);
    expect(vm.trace()).toEqual([]);
    expect(vm.traceDropped).toBe(0);
  });

  test('keeps a prefix and counts the rest', () => {
    const whole = busy(10_000);
    const all = whole.trace();
    expect(whole.traceDropped).toBe(0);
    for (const records of [1, 2, 3, 10, 57, 100]) {
      const vm = busy(records);
      const dropped = vm.traceDropped;
      const events = vm.trace();
      expect(events).toEqual(all.slice(0, events.length));
      expect(events.length + dropped).toBe(all.length);
      expect(dropped).toBeGreaterThan(0);
    }
  });

  test('drops all that follows a drop, even what would fit, until it is read', () => {
    const all = busy(10_000).trace();
    // An event of two records does not fit in the last one; a later one of one record would.
    const atTwo = all.findIndex(({ name }) => name === 'zap_leafs');
    const vm = busy(atTwo + 1);
    const events = vm.trace();
    expect(events.length).toBeLessThanOrEqual(atTwo);
    expect(vm.traceDropped).toBe(0);
    vm.vcpus[0].access({ gpa: 0, kind: 'write' });
    expect(vm.trace().map(({ name }) => name)).toContain('spte_changed');
  });

  test('is empty after it was read', () => {
    const vm = busy(10_000);
    expect(vm.trace().length).toBeGreaterThan(0);
    expect(vm.trace()).toEqual([]);
  });
});

describe('events', () => {
  const only = <N extends TraceEvent['name']>(vm: Vm, name: N) =>
    vm.trace().filter((event): event is Extract<TraceEvent, { name: N }> => event.name === name);

  test('entries that change alike are one event', () => {
    const vm = makeVm({ slots: [{ startGfn: 0x200, npages: 512 }] });
    vm.vcpus[0].access({ gpa: 0x200 * PAGE, kind: 'write', count: 512 });
    vm.trace();
    vm.unmapGfnRange({ slot: 0, start: 0x210, end: 0x230 });
    const [change, ...rest] = only(vm, 'spte_changed');
    expect(rest).toEqual([]);
    expect(change).toMatchObject({ asId: 0, root: 'direct', gfn: 0x210, level: 1, count: 32 });
    expect(change.old).toMatchObject({ class: 'leaf', writable: true, executable: true, private: false });
    expect(change.new).toEqual(spteMeaning(0, false));
  });

  test('each run of leaves that change alike within a table is one event, wherever it begins and ends', () => {
    const first = 0x200;
    const npages = 3 * 512;
    let seed = 1;
    const below = (limit: number) => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return Math.floor((seed / 2 ** 32) * limit);
    };
    for (let round = 0; round < 60; round++) {
      const vm = makeVm({ slots: [{ startGfn: first, npages }] });
      const pages = new Array<'absent' | 'old' | 'young'>(npages).fill('absent');
      // Long runs and short ones; every third guest has no old leaf, so that one flag's plane is stored at most.
      const longest = [3, 70, 600][below(3)];
      for (let at = below(longest); at < npages; at += 1 + below(longest)) {
        const count = Math.min(1 + below(longest), npages - at);
        vm.vcpus[0].access({ gpa: (first + at) * PAGE, kind: 'write', count });
        pages.fill('young', at, at + count);
        at += count;
        if (round % 3 === 0 || below(2) === 0) continue;
        const end = Math.min(at + below(longest), npages);
        const start = Math.max(at - below(longest), 0);
        if (start < end) vm.ageGfn({ slot: 0, start: first + start, end: first + end });
        for (let page = start; page < end; page++) if (pages[page] === 'young') pages[page] = 'old';
      }
      vm.trace();
      // In every second round the range ends where a word of presence does.
      const start = below(npages - 64);
      const last = start + below(npages - start);
      const end = round % 2 === 0 ? last + 1 : (last | 63) + 1;
      vm.unmapGfnRange({ slot: 0, start: first + start, end: first + end });
      const wanted: { gfn: number; count: number; accessed: boolean }[] = [];
      for (let page = start; page < end; page++) {
        if (pages[page] === 'absent') continue;
        const goesOn = page > start && pages[page - 1] === pages[page] && (first + page) % 512 !== 0;
        if (goesOn) wanted[wanted.length - 1].count++;
        else wanted.push({ gfn: first + page, count: 1, accessed: pages[page] === 'young' });
      }
      const found = only(vm, 'spte_changed').map(({ gfn, count, old }) => ({
        gfn,
        count,
        accessed: old.class === 'leaf' && old.accessed,
      }));
      expect(found).toEqual(wanted);
    }
  });

  test("what a fault installs is marked as a vCPU's, what an operation changes is not", () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 512 }] });
    vm.vcpus[0].access({ gpa: 0, kind: 'write' });
    vm.vcpus[0].finishFault(vm.vcpus[0].beginFault({ gpa: PAGE, kind: 'write' }));
    vm.unmapGfnRange({ slot: 0, start: 0, end: 512 });
    const changes = only(vm, 'spte_changed').map(({ level, gfn, count, byVcpu }) => ({ level, gfn, count, byVcpu }));
    expect(changes.filter(({ level }) => level === 1)).toEqual([
      { level: 1, gfn: 0, count: 1, byVcpu: true },
      { level: 1, gfn: 1, count: 1, byVcpu: true },
      { level: 1, gfn: 0, count: 2, byVcpu: false },
    ]);
  });

  test('large numbers are exact', () => {
    const vm = createVmSync({ memory: 2 ** 30, traceRecords: 100, debug: isDebugBuild });
    vm.host.mmap({ kind: 'anon4k', hva: 2 ** 46, length: PAGE });
    vm.host.invalidateRangeStart({ hva: 2n ** 63n, length: 2n ** 62n + 4096n });
    const [hva] = only(vm, 'kvm_unmap_hva_range');
    expect(hva).toEqual({ name: 'kvm_unmap_hva_range', start: 2n ** 63n, end: 2n ** 63n + 2n ** 62n + 4096n });
  });

  test('a gfn above 2^32 is whole', () => {
    const gfn = 2 ** 38 + 5;
    const vm = makeVm({ slots: [{ startGfn: gfn, npages: 16 }], mapped: [gfn + 1] });
    vm.zapGfnRange(gfn, gfn + 16);
    expect(only(vm, 'spte_changed').map((event) => event.gfn)).toEqual([gfn + 1]);
  });

  test('a range shows every selector, whichever the filter form reads', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 64 }] });
    vm.unmapGfnRange({
      slot: 0,
      start: 3,
      end: 9,
      arg: { attributes: 8 },
      mayBlock: false,
      onlyPrivate: true,
      attrFilter: 2,
    });
    expect(only(vm, 'unmap_gfn_range')).toEqual([
      {
        name: 'unmap_gfn_range',
        slot: 0,
        asId: 0,
        start: 3,
        end: 9,
        arg: 8,
        attrFilter: 2,
        mayBlock: false,
        onlyPrivate: true,
        onlyShared: false,
      },
    ]);
  });
});

describe('spteMeaning()', () => {
  test('gives the same object for the same code', () => {
    expect(spteMeaning(4 | (0x7f << 3), false)).toBe(spteMeaning(4 | (0x7f << 3), false));
    expect(leafMeaning(0xff, true)).toBe(leafMeaning(0xff, true));
    expect(Object.isFrozen(spteMeaning(0, false))).toBe(true);
  });

  test.each([
    [0, 'nonpresent'],
    [1, 'mmio'],
    [2, 'frozen'],
    [3, 'table'],
    [4, 'leaf'],
  ])('class %i is %s', (code, name) => {
    expect(spteMeaning(code, false).class).toBe(name);
  });

  test.each([
    [2, 'writable'],
    [4, 'accessed'],
    [8, 'dirty'],
    [16, 'hostWritable'],
    [32, 'mmuWritable'],
    [128, 'private'],
  ] as const)('flag %i of a leaf is %s', (flag, name) => {
    const none = leafMeaning(1, false);
    expect(leafMeaning(1 | flag, false)).toEqual({ ...none, [name]: true });
  });

  test('NX takes executable away; every mirror leaf is private', () => {
    expect(leafMeaning(1 | 64, false).executable).toBe(false);
    expect(leafMeaning(1, true)).toMatchObject({ private: true });
    expect(leafMeaning(1, false)).toMatchObject({ private: false });
  });

  test('an MMIO spte has its generation', () => {
    expect(spteMeaning(1 | (77 << 3), false)).toMatchObject({ class: 'mmio', mmioGeneration: 77, writable: false });
  });
});
