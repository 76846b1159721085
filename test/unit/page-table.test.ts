// How tables are stored, seen from outside: uniform areas take no room, diverge when they must, and fold back.

import { describe, expect, test } from 'vitest';
import type { HostKind, Vm } from '../../src/index.ts';
import { oracleFindsNoBug } from '../support/invariants.ts';
import { makeVm, PAGE } from '../support/make-vm.ts';
import { counted } from '../support/observe.ts';
import { randomFrom } from '../support/random.ts';

const GUEST = 4 * 512 * 512;
/** Four levels, 4 GiB, all mapped with 4K pages and written. */
function mapped(options: { kind?: HostKind; npages?: number } = {}): Vm {
  const { kind = 'anon4k', npages = GUEST } = options;
  const vm = makeVm({ maxphyaddr: 48, traceRecords: 0, slots: [{ startGfn: 0, npages, kind }] });
  vm.host.access({ hva: 0x100000000000, length: npages * PAGE, write: true });
  for (let left = { gpa: 0n, size: BigInt(npages * PAGE) }; left.size > 0n; ) left = vm.vcpus[0].preFaultMemory(left);
  vm.vcpus[0].access({ gpa: 0, kind: 'write', count: npages });
  return vm;
}
const runs = (vm: Vm) => vm.leafs().map(({ level, gfn, count }) => [level, gfn, count]);
const UPPER = 8192;
const PLANE = 64;

describe('a uniform area', () => {
  test('takes no room of its own, and its tables are counted', () => {
    const vm = mapped();
    expect(runs(vm)).toEqual([[1, 0, GUEST]]);
    // The root, one table of level 3, four of level 2, 2,048 of leaves.
    expect(vm.stats().tables).toBe(1 + 4 + 2048);
    const small = mapped({ npages: 512 * 512 });
    expect(vm.memoryUsed - small.memoryUsed).toBeLessThan(2 * UPPER);
  });

  test('shows every level to a walk', () => {
    const vm = mapped();
    const walk = vm.walk((5 * 2 ** 30) / 2 + 7 * PAGE);
    expect(walk.map(({ level }) => level)).toEqual([4, 3, 2, 1]);
    expect(walk.map(({ spte }) => spte.class)).toEqual(['table', 'table', 'table', 'leaf']);
    expect(walk.map(({ index }) => index)).toEqual([0, 2, 256, 7]);
  });

  test('diverges along one path when one page goes, and folds back when it returns', () => {
    const vm = mapped();
    const before = vm.memoryUsed;
    const leafs = vm.leafs();
    vm.unmapGfnRange({ slot: 0, start: 70_000, end: 70_001 });
    expect(runs(vm)).toEqual([
      [1, 0, 70_000],
      [1, 70_001, GUEST - 70_001],
    ]);
    expect(vm.memoryUsed - before).toBeLessThanOrEqual(2 * UPPER + 4 * PLANE + 1024);
    vm.vcpus[0].access({ gpa: 70_000 * PAGE, kind: 'write' });
    expect(vm.leafs()).toEqual(leafs);
  });

  test('that folds leaves no way into its freed table to the access after', () => {
    const vm = mapped();
    const [page, elsewhere] = [70_000, 70_000 + 2 ** 18];
    const vcpu = vm.vcpus[0];
    vm.unmapGfnRange({ slot: 0, start: page, end: page + 1 });
    vcpu.access({ gpa: page * PAGE, kind: 'write' });
    vm.ageGfn({ slot: 0, start: 0, end: GUEST });
    expect(runs(vm)).toEqual([[1, 0, GUEST]]);
    // The next area that diverges takes the table that was freed, at the same place in it.
    const before = vm.memoryUsed;
    vm.unmapGfnRange({ slot: 0, start: elsewhere - 5, end: elsewhere + 5 });
    expect(vm.memoryUsed - before).toBeLessThan(UPPER);
    const { pf_taken: faults } = vm.stats();
    vcpu.access({ gpa: page * PAGE, kind: 'read' });
    expect(vm.stats().pf_taken).toBe(faults);
    expect([vm.spte(page), vm.spte(elsewhere)]).toMatchObject([{ accessed: true }, { class: 'nonpresent' }]);
    expect(runs(vm).reduce((sum, [, , count]) => sum + count, 0)).toBe(GUEST - 10);
  });

  test('is one again after all of it was zapped: its tables stay linked', () => {
    const vm = mapped();
    const { tables } = vm.stats();
    for (let gfn = 0; gfn < 2048; gfn += 3) vm.unmapGfnRange({ slot: 0, start: gfn, end: gfn + 1 });
    vm.unmapGfnRange({ slot: 0, start: 0, end: GUEST });
    expect(vm.leafs()).toEqual([]);
    expect(vm.stats().tables).toBe(tables);
    expect(vm.walk(PAGE).map(({ spte }) => spte.class)).toEqual(['table', 'table', 'table', 'nonpresent']);
  });

  test('does not grow with the number of times that it diverges and folds', () => {
    const vm = mapped();
    const once = () => {
      for (let gfn = 5; gfn < GUEST; gfn += 100_000) vm.unmapGfnRange({ slot: 0, start: gfn, end: gfn + 1000 });
      vm.vcpus[0].preFaultMemory({ gpa: 0, size: GUEST * PAGE });
      vm.vcpus[0].access({ gpa: 0, kind: 'write', count: GUEST });
    };
    once();
    const used = vm.memoryUsed;
    for (let round = 0; round < 5; round++) once();
    expect(vm.memoryUsed).toBeLessThanOrEqual(used + UPPER);
    expect(runs(vm)).toEqual([[1, 0, GUEST]]);
  });
});

describe('a leaf table', () => {
  test('adds planes only for the flags that differ', () => {
    const vm = mapped({ npages: 512 * 512 });
    vm.unmapGfnRange({ slot: 0, start: 0, end: 1 });
    const one = vm.memoryUsed;
    // Presence has a plane already; a second hole needs no more.
    vm.unmapGfnRange({ slot: 0, start: 100, end: 200 });
    expect(vm.memoryUsed).toBe(one);
    vm.ageGfn({ slot: 0, start: 300, end: 310 });
    // One block of four planes; the single plane it replaces is free: 4 bytes on its stack.
    expect(vm.memoryUsed - one).toBeLessThanOrEqual(4 * PLANE + 4);
    expect(vm.memoryUsed).toBeGreaterThan(one);
  });

  test.each([
    ['one page', 1],
    ['a word', 64],
    ['part of two words', 100],
  ])('counts who is young after %s of it went', (_, pages) => {
    const vm = mapped({ npages: 1024 });
    const aged = () => {
      const before = vm.stat('leafs_aged');
      vm.ageGfn({ slot: 0, start: 0, end: 1024 });
      return vm.stat('leafs_aged') - before;
    };
    // In the first table all are alike, in the second a plane says who was accessed.
    vm.ageGfn({ slot: 0, start: 1000, end: 1001 });
    for (const start of [64, 512 + 64]) vm.unmapGfnRange({ slot: 0, start, end: start + pages });
    expect(aged()).toBe(1024 - 2 * pages - 1);
    expect(aged()).toBe(0);
  });

  test('keeps what each page is, whatever happens beside it', () => {
    const npages = 1536;
    const vm = makeVm({ maxphyaddr: 48, slots: [{ startGfn: 0, npages, flags: 1 }] });
    const random = randomFrom('leaf table');
    const integer = (below: number) => Math.floor(random() * below);
    const present = new Array<boolean>(npages).fill(false);
    const accessed = new Array<boolean>(npages).fill(false);
    for (let step = 0; step < 400; step++) {
      const start = integer(npages);
      const end = Math.min(start + 1 + integer(step % 3 === 0 ? 600 : 20), npages);
      const range = { slot: 0, start, end };
      switch (integer(4)) {
        case 0:
          vm.unmapGfnRange(range);
          present.fill(false, start, end);
          break;
        case 1: {
          // Of a whole table the entry's own count answers.
          if (step % 2 === 0) [range.start, range.end] = [start - (start % 512), start - (start % 512) + 512];
          const before = vm.stat('leafs_aged');
          vm.ageGfn(range);
          const isYoung = (gfn: number) => present[gfn] && accessed[gfn];
          const gfns = Array.from({ length: range.end - range.start }, (_, index) => range.start + index);
          expect(vm.stat('leafs_aged') - before).toBe(gfns.filter(isYoung).length);
          accessed.fill(false, range.start, range.end);
          break;
        }
        case 2:
          vm.vcpus[0].access({ gpa: start * PAGE, kind: 'read', count: end - start });
          present.fill(true, start, end);
          accessed.fill(true, start, end);
          break;
        default:
          vm.vcpus[0].access({ gpa: start * PAGE, kind: 'write' });
          present[start] = true;
          accessed[start] = true;
      }
      if (step % 20 !== 0) continue;
      const found = new Array<boolean>(npages).fill(false);
      const young = new Array<boolean>(npages).fill(false);
      for (const { gfn, count, spte } of vm.leafs()) {
        found.fill(true, gfn, gfn + count);
        young.fill(spte.accessed, gfn, gfn + count);
      }
      expect(found).toEqual(present);
      expect(young.map((one, gfn) => one && present[gfn])).toEqual(accessed.map((one, gfn) => one && present[gfn]));
      expect(vm.stats().pages_4k).toBe(present.filter(Boolean).length);
    }
  });
});

describe('the planes of a leaf table', () => {
  const TABLE_PAGES = 512;
  const TABLES = 64;
  const npages = TABLES * TABLE_PAGES;
  const gfns = Float64Array.from({ length: npages }, (_, gfn) => gfn);
  /** Never-written memory: a read maps the zero page, read-only; a write a page of the VM's own. */
  const untouched = () => makeVm({ maxphyaddr: 48, traceRecords: 0, slots: [{ startGfn: 0, npages, kind: 'anon4k' }] });
  const touch = (vm: Vm, gfn: number, kind: 'read' | 'write') => vm.vcpus[0].access({ gpa: gfn * PAGE, kind });
  /** Flags in which the pages of the first table differ. */
  const differing = (vm: Vm) => {
    const codes = vm.sptes(gfns.subarray(0, TABLE_PAGES));
    return codes.reduce((any, code) => any | code, 0) & ~codes.reduce((all, code) => all & code, ~0);
  };
  const ones = (mask: number) => mask.toString(2).replaceAll('0', '').length;

  test('have one block of 256 bytes, whichever four they are', () => {
    // The host's page table of the same pages, with nothing mapped by KVM.
    const bare = untouched();
    const vm = untouched();
    for (let gfn = 0; gfn < npages; gfn++) {
      const kind = gfn % 3 === 0 ? 'write' : 'read';
      touch(vm, gfn, kind);
      bare.host.access({ hva: 0x100000000000 + gfn * PAGE, length: PAGE, write: kind === 'write' });
    }
    // W, D, H and M, of two halves of the byte.
    expect(ones(differing(vm))).toBe(4);
    const stored = vm.memoryUsed - bare.memoryUsed;
    expect(stored).toBeLessThanOrEqual(TABLES * 4 * PLANE + 3 * UPPER + 1024);
    // With presence they are five, which have two blocks.
    for (let table = 0; table < TABLES; table++) {
      const range = { slot: 0, start: table * TABLE_PAGES + 7, end: table * TABLE_PAGES + 9 };
      vm.unmapGfnRange(range);
    }
    expect(vm.memoryUsed - bare.memoryUsed - stored).toBeLessThanOrEqual(TABLES * 4 * PLANE + 1024);
  });

  test.each([1, 2, 3, 4, 5, 6])('move as others come, and take nothing of a page with them (seed %i)', (seed) => {
    const random = randomFrom(`planes ${seed}`);
    const integer = (below: number) => Math.floor(random() * below);
    const vm = untouched();
    const some = gfns.subarray(0, 4 * TABLE_PAGES);
    // What an absent page's walk ends at depends on its neighbours: only the state counts.
    const states = () => vm.sptes(some).map((code) => code & 0xffff);
    let before = states();
    let most = 0;
    for (let step = 0; step < 1500; step++) {
      // Few pages of each table at first, and few kinds of change, so that planes come in another order for each seed.
      const page = integer(4) * TABLE_PAGES + integer(step < 200 ? 40 : TABLE_PAGES);
      const change = integer(step % 500 < 60 ? 1 + (seed % 3) : 4);
      const length = change === 3 && step % 100 === 99 ? TABLE_PAGES : 1;
      const start = page - (page % length);
      const range = { slot: 0, start, end: start + length };
      if (change === 0) touch(vm, page, seed % 2 === 0 ? 'write' : 'read');
      else if (change === 1) vm.ageGfn(range);
      else if (change === 2) touch(vm, page, seed % 2 === 0 ? 'read' : 'write');
      else vm.unmapGfnRange(range);
      const after = states();
      const elsewhere = after.findIndex(
        (state, gfn) => state !== before[gfn] && !(gfn >= start && gfn < start + length),
      );
      expect([step, elsewhere]).toEqual([step, -1]);
      before = after;
      most = Math.max(most, ones(differing(vm)));
    }
    expect(most).toBeGreaterThan(4);
  });
});

describe('leaf tables zapped side by side', () => {
  const GIB_PAGES = 512 * 512;
  /** Gives every leaf table planes: of presence alone, or of presence and A. */
  const scatter = (vm: Vm, npages: number) => {
    for (let gfn = 0; gfn < npages; gfn += 512) {
      vm.unmapGfnRange({ slot: 0, start: gfn + 3, end: gfn + 4 });
      if (gfn % 3 === 0) vm.ageGfn({ slot: 0, start: gfn + 100, end: gfn + 200 });
    }
  };

  test('leave a table that is one again, and free what they had, once', () => {
    const vm = mapped({ npages: GIB_PAGES });
    const { tables } = vm.stats();
    const once = () => {
      scatter(vm, GIB_PAGES);
      const names = ['leafs_zapped_direct_4k', 'entries_visited_l1', 'tables_freed'] as const;
      expect(counted(vm, names, () => vm.unmapGfnRange({ slot: 0, start: 0, end: GIB_PAGES }))).toEqual({
        leafs_zapped_direct_4k: GIB_PAGES - 512,
        entries_visited_l1: GIB_PAGES,
        tables_freed: 0,
      });
      expect(vm.leafs()).toEqual([]);
      expect(vm.stats().tables).toBe(tables);
      vm.vcpus[0].access({ gpa: 0, kind: 'write', count: GIB_PAGES });
      expect(runs(vm)).toEqual([[1, 0, GIB_PAGES]]);
    };
    once();
    const used = vm.memoryUsed;
    for (let round = 0; round < 5; round++) once();
    expect(vm.memoryUsed).toBe(used);
  });

  test('stop at the last of a range, and begin at its first', () => {
    const vm = mapped({ npages: GIB_PAGES });
    scatter(vm, GIB_PAGES);
    const range = { slot: 0, start: 512 * 7 - 5, end: 512 * 300 + 9 };
    const before = vm.leafs().flatMap(({ gfn, count }) => Array.from({ length: count }, (_, index) => gfn + index));
    const gone = before.filter((gfn) => gfn >= range.start && gfn < range.end);
    const { leafs_zapped_direct_4k: zapped } = counted(vm, ['leafs_zapped_direct_4k'], () => vm.unmapGfnRange(range));
    expect(zapped).toBe(gone.length);
    const after = vm.leafs().flatMap(({ gfn, count }) => Array.from({ length: count }, (_, index) => gfn + index));
    expect(after).toEqual(before.filter((gfn) => gfn < range.start || gfn >= range.end));
  });

  test('take 2M leaves between them along, and leave MMIO sptes', () => {
    const M2 = 512;
    const vm = makeVm({
      maxphyaddr: 48,
      traceRecords: 0,
      slots: [
        { startGfn: 0, npages: 100 * M2, kind: 'anon4k' },
        { startGfn: 100 * M2, npages: 56 * M2, kind: 'hugetlb2m' },
        { startGfn: 156 * M2, npages: 300 * M2, kind: 'anon4k' },
        { startGfn: 460 * M2 + 7, npages: 52 * M2 - 7, kind: 'anon4k' },
      ],
    });
    const touch = () => {
      vm.vcpus[0].access({ gpa: 0, kind: 'write', count: 456 * M2 });
      vm.vcpus[0].access({ gpa: (460 * M2 + 7) * PAGE, kind: 'write', count: 52 * M2 - 7 });
      // Emulated: no slot is there.
      for (const gfn of [460 * M2, 460 * M2 + 6]) vm.vcpus[0].access({ gpa: gfn * PAGE, kind: 'read' });
    };
    touch();
    const mapping = vm.leafs();
    const names = ['leafs_zapped_direct_4k', 'leafs_zapped_direct_2m'] as const;
    expect(counted(vm, names, () => vm.zapGfnRange(0, GIB_PAGES))).toEqual({
      leafs_zapped_direct_4k: 452 * M2 - 7,
      leafs_zapped_direct_2m: 56,
    });
    expect(vm.leafs()).toEqual([]);
    expect([460 * M2, 460 * M2 + 6, 460 * M2 + 7].map((gfn) => vm.spte(gfn).class)).toEqual([
      'mmio',
      'mmio',
      'nonpresent',
    ]);
    touch();
    expect(vm.leafs()).toEqual(mapping);
    expect(oracleFindsNoBug(vm)).toBeNull();
  });

  test.each([
    ['hugetlb2m', 512],
    ['hugetlb1g', 513],
  ] as const)('stay where a huge page of %s would stand, for the worker that recovers those', (kind, tracked) => {
    const slots = [{ startGfn: 0, npages: GIB_PAGES, kind }];
    const vm = makeVm({ maxphyaddr: 48, traceRecords: 0, nxHugePages: true, slots });
    const vcpu = vm.vcpus[0];
    const touch = (kind: 'exec' | 'read') => {
      for (let gfn = 0; gfn < GIB_PAGES; gfn += 512) vcpu.access({ gpa: (gfn + 5) * PAGE, kind });
    };
    const zapAll = () => vm.unmapGfnRange({ slot: 0, start: 0, end: GIB_PAGES });
    // An exec fault marks all tables that it makes; what holds those of 2M pages is there before.
    touch('read');
    touch('exec');
    const splits = () => vm.stat('nx_lpage_splits');
    expect(splits()).toBe(tracked);
    for (const again of ['read', 'exec'] as const) {
      zapAll();
      expect(vm.leafs()).toEqual([]);
      expect(splits()).toBe(tracked);
      touch(again);
      expect(runs(vm).every(([level, , count]) => level === 1 && count === 1)).toBe(true);
    }
    zapAll();
    vm.recoverNxHugePages();
    expect(splits()).toBe(0);
    touch('read');
    expect(runs(vm)).toEqual([kind === 'hugetlb1g' ? [3, 0, 1] : [2, 0, 512]]);
  });
});

describe('huge leaves', () => {
  test.each([
    ['hugetlb2m', 2, 512],
    ['hugetlb1g', 3, 512 * 512],
  ] as const)('of %s are leaves of level %i, and go whole', (kind, level, pages) => {
    const vm = mapped({ kind });
    expect(runs(vm)).toEqual([[level, 0, GUEST / pages]]);
    const before = vm.stats().gfns_zapped_outside_request;
    vm.unmapGfnRange({ slot: 0, start: pages + 5, end: pages + 6 });
    expect(runs(vm)).toEqual([
      [level, 0, 1],
      [level, 2 * pages, GUEST / pages - 2],
    ]);
    expect(vm.stats().gfns_zapped_outside_request - before).toBe(pages - 1);
  });
});

describe('what is freed', () => {
  test('is used again', () => {
    const vm = mapped();
    const scatter = () => {
      for (let gfn = 0; gfn < GUEST; gfn += 512) vm.unmapGfnRange({ slot: 0, start: gfn + 3, end: gfn + 4 });
    };
    scatter();
    const used = vm.memoryUsed;
    for (let round = 0; round < 3; round++) {
      vm.vcpus[0].access({ gpa: 0, kind: 'write', count: GUEST });
      scatter();
    }
    // Only the stacks of free blocks differ.
    expect(vm.memoryUsed).toBeLessThan(used * 1.1);
  });

  test('of a destroyed VM is all of it', () => {
    const vm = mapped();
    vm.unmapGfnRange({ slot: 0, start: 70_000, end: 70_001 });
    vm.destroy();
    expect(vm.stats()).toMatchObject({ tables: 0, pages_4k: 0 });
    expect(vm.rootCount).toBe(0);
  });
});
