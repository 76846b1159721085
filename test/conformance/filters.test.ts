// The contract of struct kvm_gfn_range's selectors: what each producer puts in, and which trees each form takes it to mean.
//
// Columns: B is the RFC (form rfc-v4, the default profile), C the TDX series v18 (form tdx-v18), E upstream (form
// attr-filter, profile linux-6.16). The VM is a TD with gfns 0 to 7 mapped shared and 8 to 15 private: "shared" zapped
// means that the direct tree lost all of its leaves and the mirror none. Cells that state no filter are listed at the end.

import { describe, expect, test } from 'vitest';
import type { CreateVmOptions, FilterForm, KernelProfile, Vm, VmType } from '../../src/index.ts';
import type { AnyEvent } from '../support/events.ts';
import { makeVm, PAGE, type TestVm } from '../support/make-vm.ts';
import { makeMappedVm, type Zapped, zappedBy } from '../support/mapped-td.ts';
import { countersMoved, eventsOf, hvaOfSlot, leavesOf } from '../support/observe.ts';

const HVA = hvaOfSlot(0);
const ALL_HVA = { hva: HVA, length: 16 * PAGE };
const RANGE_CALLS = ['unmap_gfn_range', 'age_gfn', 'test_age_gfn', 'set_spte_gfn'];

type Column = 'B rfc-v4' | 'C tdx-v18' | 'E attr-filter';
const OPTIONS: Record<Column, Partial<CreateVmOptions>> = {
  'B rfc-v4': {},
  'C tdx-v18': { filterForm: 'tdx-v18' },
  'E attr-filter': { kernel: 'linux-6.16' },
};
const COLUMNS = Object.keys(OPTIONS) as Column[];

/** (only_private, only_shared). */
type Pair = '(F,F)' | '(F,T)' | '(T,F)' | '(T,T)';
const PAIRS: Pair[] = ['(F,F)', '(F,T)', '(T,F)', '(T,T)'];
const boolsOf = (pair: Pair) => ({ onlyPrivate: pair[1] === 'T', onlyShared: pair[3] === 'T' });
const SHARED = 1;
const PRIVATE = 2;
const BOTH = 3;

interface Producer {
  producer: string;
  call: 'unmap_gfn_range' | 'age_gfn' | 'test_age_gfn' | 'set_spte_gfn';
  produce: (vm: TestVm) => unknown;
  mayBlock: boolean;
  /** What stands in the range, and what was zapped, by column. */
  cells: Partial<Record<Column, [selector: Pair | 0 | 1 | 2 | 3, zapped: Zapped]>>;
}

const eachPage = (act: (page: number) => void) => {
  for (let page = 0; page < 16; page++) act(page);
};
const convert = (vm: Vm, attributes: number) => vm.setMemoryAttributes({ address: 0, size: 16 * PAGE, attributes });

const PRODUCERS: Producer[] = [
  {
    producer: 'notifier invalidate_range_start, blockable',
    call: 'unmap_gfn_range',
    produce: (vm) => vm.host.invalidateRangeStart(ALL_HVA),
    mayBlock: true,
    cells: { 'B rfc-v4': ['(F,T)', 'shared'], 'C tdx-v18': ['(F,T)', 'shared'], 'E attr-filter': [SHARED, 'shared'] },
  },
  {
    producer: 'notifier invalidate_range_start, not blockable',
    call: 'unmap_gfn_range',
    produce: (vm) => vm.host.invalidateRangeStart({ ...ALL_HVA, blockable: false }),
    mayBlock: false,
    cells: { 'B rfc-v4': ['(F,T)', 'shared'], 'C tdx-v18': ['(F,T)', 'shared'], 'E attr-filter': [SHARED, 'shared'] },
  },
  {
    producer: 'notifier clear_flush_young',
    call: 'age_gfn',
    produce: (vm) => vm.host.age({ ...ALL_HVA, flush: true }),
    mayBlock: false,
    cells: {
      'B rfc-v4': ['(F,T)', 'nothing'],
      'C tdx-v18': ['(F,T)', 'nothing'],
      'E attr-filter': [SHARED, 'nothing'],
    },
  },
  {
    producer: 'notifier clear_young',
    call: 'age_gfn',
    produce: (vm) => vm.host.age(ALL_HVA),
    mayBlock: false,
    cells: {
      'B rfc-v4': ['(F,T)', 'nothing'],
      'C tdx-v18': ['(F,T)', 'nothing'],
      'E attr-filter': [SHARED, 'nothing'],
    },
  },
  {
    producer: 'notifier test_young',
    call: 'test_age_gfn',
    produce: (vm) => eachPage((page) => vm.host.testAge({ hva: HVA + page * PAGE })),
    mayBlock: false,
    cells: {
      'B rfc-v4': ['(F,T)', 'nothing'],
      'C tdx-v18': ['(F,T)', 'nothing'],
      'E attr-filter': [SHARED, 'nothing'],
    },
  },
  {
    producer: 'notifier change_pte',
    call: 'set_spte_gfn',
    produce: (vm) => eachPage((page) => vm.host.changePte({ hva: HVA + page * PAGE, writable: true })),
    mayBlock: false,
    cells: { 'B rfc-v4': ['(F,T)', 'shared'], 'C tdx-v18': ['(F,T)', 'shared'] },
  },
  {
    producer: 'gmem PUNCH_HOLE',
    call: 'unmap_gfn_range',
    produce: (vm) => vm.slotFiles[0]?.punchHole(0, 16 * PAGE),
    mayBlock: true,
    cells: { 'B rfc-v4': ['(T,F)', 'private'], 'C tdx-v18': ['(T,F)', 'both'], 'E attr-filter': [PRIVATE, 'private'] },
  },
  {
    producer: 'gmem release',
    call: 'unmap_gfn_range',
    produce: (vm) => vm.slotFiles[0]?.close(),
    mayBlock: true,
    cells: { 'B rfc-v4': ['(T,F)', 'private'], 'C tdx-v18': ['(T,F)', 'both'], 'E attr-filter': [PRIVATE, 'private'] },
  },
  {
    producer: 'gmem error_remove_folio',
    call: 'unmap_gfn_range',
    produce: (vm) => eachPage((page) => vm.slotFiles[0]?.memoryError(page)),
    mayBlock: true,
    cells: { 'B rfc-v4': ['(T,F)', 'private'], 'C tdx-v18': ['(T,F)', 'both'], 'E attr-filter': [PRIVATE, 'private'] },
  },
  {
    producer: 'set attributes, pre hook, to private',
    call: 'unmap_gfn_range',
    produce: (vm) => convert(vm, 8),
    mayBlock: true,
    cells: { 'B rfc-v4': ['(F,F)', 'shared'], 'C tdx-v18': ['(F,F)', 'shared'], 'E attr-filter': [SHARED, 'shared'] },
  },
  {
    producer: 'set attributes, pre hook, to shared',
    call: 'unmap_gfn_range',
    produce: (vm) => convert(vm, 0),
    mayBlock: true,
    cells: { 'B rfc-v4': ['(F,F)', 'private'], 'C tdx-v18': ['(F,F)', 'both'], 'E attr-filter': [PRIVATE, 'private'] },
  },
  {
    producer: 'memslot delete',
    call: 'unmap_gfn_range',
    produce: (vm) => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: HVA }),
    mayBlock: true,
    cells: {
      'B rfc-v4': ['(T,T)', 'both'],
      'C tdx-v18': ['(T,T)', 'both'],
      'E attr-filter': [BOTH, 'both'],
    },
  },
];

describe.each(PRODUCERS.map((row) => [row.producer, row] as const))('%s', (_, { call, produce, mayBlock, cells }) => {
  const rows = Object.entries(cells).map(([column, [selector, zapped]]) => [column, selector, zapped] as const);
  test.each(rows)('%s: selector %s, zaps %s', (column, selector, zapped) => {
    const vm = makeMappedVm(OPTIONS[column as Column]);
    expect(zappedBy(vm, () => produce(vm))).toBe(zapped);
    const ranges = eventsOf(vm, ...RANGE_CALLS);
    expect(ranges.length).toBeGreaterThan(0);
    const fields = typeof selector === 'string' ? boolsOf(selector) : { attrFilter: selector };
    for (const range of ranges) expect(range).toMatchObject({ name: call, mayBlock, ...fields });
    // Together the ranges are the whole request.
    const gfns = new Set(ranges.flatMap(({ start, end }) => span(Number(start), Number(end))));
    expect([...gfns]).toEqual(span(0, 16));
  });
});
const span = (from: number, to: number) => Array.from({ length: to - from }, (_, k) => from + k);

describe('what else a range of a producer carries', () => {
  test.each([
    ['private', 8],
    ['shared', 0],
  ])('set attributes to %s: arg.attributes is the new value', (_, attributes) => {
    const vm = makeMappedVm();
    convert(vm, attributes);
    expect(eventsOf(vm, 'unmap_gfn_range')).toMatchObject([{ arg: attributes }]);
  });

  test.each([
    ['writable', true],
    ['read-only', false],
  ])('change_pte: arg.pte is the new host pte, %s', (_, writable) => {
    const vm = makeMappedVm();
    vm.host.changePte({ hva: HVA, writable });
    vm.setSpteGfn({ slot: 0, start: 1, end: 2, arg: { pte: { writable } }, onlyShared: true });
    const [byHost, direct] = eventsOf(vm, 'set_spte_gfn');
    expect(byHost.arg).toBe(direct.arg);
    expect(byHost).toMatchObject({ start: 0, end: 1 });
  });

  test.each(COLUMNS)('set attributes, post hook, never zaps (%s)', (column) => {
    const vm = makeMappedVm(OPTIONS[column]);
    convert(vm, 8);
    const events = eventsOf(vm, 'pre_attr', 'unmap_gfn_range', 'inv_end', 'post_attr');
    expect(events.map(({ name }) => name)).toEqual(['pre_attr', 'unmap_gfn_range', 'inv_end', 'post_attr']);
    const hook = { slot: 0, asId: 0, start: 0, end: 16, arg: 8, mayBlock: true };
    expect([events[0], events[3]]).toMatchObject([hook, hook]);
  });

  test.each(COLUMNS)('aging asks about the shared tree only (%s)', (column) => {
    const vm = makeMappedVm(OPTIONS[column]);
    const moved = countersMoved(vm, () => expect(vm.host.age(ALL_HVA)).toBe(true));
    expect(moved.leafs_aged).toBe(8);
    expect(vm.leafs({ root: 'direct' }).every(({ spte }) => !spte.accessed)).toBe(true);
    expect(vm.host.age(ALL_HVA)).toBe(false);
    expect(vm.host.testAge({ hva: HVA + 8 * PAGE })).toBe(false);
  });
});

describe('memslot move', () => {
  // A slot with a guest_memfd cannot move, so there is a shared tree to zap and nothing else.
  const cells: [Column, object][] = [
    ['B rfc-v4', boolsOf('(T,T)')],
    ['C tdx-v18', boolsOf('(T,T)')],
    ['E attr-filter', { attrFilter: BOTH }],
  ];
  test.each(cells)('%s: the selector of a delete', (column, fields) => {
    const vm = makeVm({ type: 'tdx', ...OPTIONS[column], slots: [{ startGfn: 0, npages: 16 }], mapped: [0, 1] });
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 64 * PAGE, memorySize: 16 * PAGE, userspaceAddr: HVA });
    expect(eventsOf(vm, ...RANGE_CALLS)).toEqual([
      expect.objectContaining({ start: 0, end: 16, mayBlock: true, ...fields }),
    ]);
    expect(leavesOf(vm)).toEqual([]);
  });
});

describe('producers without a range', () => {
  test.each(COLUMNS)(
    'VM destruct builds no range; it zaps the direct root first, the mirror root after its key (%s)',
    (column) => {
      const vm = makeMappedVm(OPTIONS[column]);
      vm.slotFiles[0]?.close();
      vm.trace();
      vm.destroy();
      const events = vm.trace() as unknown as AnyEvent[];
      expect(events.filter(({ name }) => RANGE_CALLS.includes(name))).toEqual([]);
      const released = events.findIndex(({ name }) => name === 'inv_roots');
      const treesOf = (some: AnyEvent[]) => [
        ...new Set(some.filter(({ name }) => name === 'spte_changed').map(({ root }) => root)),
      ];
      expect(treesOf(events.slice(0, released))).toEqual(['direct']);
      expect(treesOf(events.slice(released))).toEqual(['mirror']);
      expect(vm.stats()).toMatchObject({ pages_4k: 0, tables: 0 });
    },
  );

  const zapped: [Column, Zapped][] = [
    ['B rfc-v4', 'both'],
    ['C tdx-v18', 'shared'],
    ['E attr-filter', 'both'],
  ];
  test.each(zapped)('zap_gfn_range builds no range; %s zaps %s', (column, trees) => {
    const vm = makeMappedVm(OPTIONS[column]);
    expect(zappedBy(vm, () => vm.zapGfnRange(0, 16))).toBe(trees);
    const events = vm.trace() as unknown as AnyEvent[];
    expect(events.filter(({ name }) => RANGE_CALLS.includes(name))).toEqual([]);
    const walks = events.filter(({ name }) => name === 'zap_leafs');
    expect(walks).toHaveLength(trees === 'both' ? 2 : 1);
    expect(walks[0]).toMatchObject({ start: 0, end: 16, canYield: true });
  });
});

describe('linux-6.12 reports a filter that its MMU does not read', () => {
  const reported: [string, (vm: TestVm) => unknown, number][] = [
    ['notifier unmap: SHARED', (vm) => vm.host.invalidateRangeStart(ALL_HVA), SHARED],
    ['gmem punch: PRIVATE', (vm) => vm.slotFiles[0]?.punchHole(0, 16 * PAGE), PRIVATE],
    ['set attributes to private: SHARED', (vm) => convert(vm, 8), SHARED],
    ['set attributes to shared: PRIVATE', (vm) => convert(vm, 0), PRIVATE],
    [
      'memslot delete: 0',
      (vm) => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: HVA }),
      0,
    ],
  ];
  test.each(reported)('%s, and all of the range is zapped', (_, produce, attrFilter) => {
    const vm = makeMappedVm({ type: 'sw-protected', kernel: 'linux-6.12' });
    expect(zappedBy(vm, () => produce(vm))).toBe('both');
    const filters = eventsOf(vm, 'unmap_gfn_range').map((range) => range.attrFilter);
    expect(new Set(filters)).toEqual(new Set([attrFilter]));
  });
});

// --- Consumers -----------------------------------------------------------------------------------------------------------

const ALL = { slot: 0, start: 0, end: 16 };
const CONSUMERS: { form: FilterForm; rows: [Pair, 'private' | 'shared', Zapped | 'EINVAL'][] }[] = [
  {
    // The RFC's message.
    form: 'rfc-v4',
    rows: [
      ['(F,T)', 'private', 'shared'],
      ['(F,T)', 'shared', 'shared'],
      ['(T,F)', 'private', 'private'],
      ['(T,F)', 'shared', 'private'],
      ['(F,F)', 'private', 'shared'],
      ['(F,F)', 'shared', 'private'],
      ['(T,T)', 'private', 'both'],
      ['(T,T)', 'shared', 'both'],
    ],
  },
  {
    // The code of the TDX series: the shared root is never skipped.
    form: 'tdx-v18',
    rows: [
      ['(F,T)', 'private', 'shared'],
      ['(F,T)', 'shared', 'shared'],
      ['(T,F)', 'private', 'both'],
      ['(T,F)', 'shared', 'both'],
      ['(F,F)', 'private', 'shared'],
      ['(F,F)', 'shared', 'both'],
      ['(T,T)', 'private', 'both'],
      ['(T,T)', 'shared', 'both'],
    ],
  },
  {
    // What guest_memfd v13's author meant.
    form: 'gmem-v13',
    rows: [
      ['(F,T)', 'private', 'shared'],
      ['(F,T)', 'shared', 'shared'],
      ['(T,F)', 'private', 'private'],
      ['(T,F)', 'shared', 'private'],
      ['(F,F)', 'private', 'both'],
      ['(F,F)', 'shared', 'both'],
      ['(T,T)', 'private', 'EINVAL'],
      ['(T,T)', 'shared', 'EINVAL'],
    ],
  },
  {
    // Upstream before the filter: everything in the range.
    form: 'none',
    rows: PAIRS.flatMap((pair) =>
      (['private', 'shared'] as const).map((to) => [pair, to, 'both'] as [Pair, typeof to, Zapped]),
    ),
  },
];

describe.each(CONSUMERS.map(({ form, rows }) => [form, rows] as const))('form %s on a TD', (form, rows) => {
  test.each(rows)('%s, new=%s: %s', (pair, to, outcome) => {
    const vm = makeMappedVm({ filterForm: form });
    // The form reads the bools only: a filter that says the opposite changes nothing.
    const attrFilter = outcome === 'shared' ? PRIVATE : outcome === 'private' ? SHARED : 0;
    const range = { ...ALL, arg: { attributes: to === 'private' ? 8 : 0 }, ...boolsOf(pair), attrFilter };
    if (outcome === 'EINVAL') {
      const before = vm.snapshot();
      expect(() => vm.unmapGfnRange(range)).toThrow(expect.objectContaining({ code: 'EINVAL' }));
      expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
      return;
    }
    expect(zappedBy(vm, () => expect(vm.unmapGfnRange(range)).toBe(true))).toBe(outcome);
    expect(vm.unmapGfnRange(range)).toBe(false);
  });
});

describe('form attr-filter on a TD', () => {
  const rows: [number, Zapped][] = [
    [0, 'nothing'],
    [SHARED, 'shared'],
    [PRIVATE, 'private'],
    [BOTH, 'both'],
  ];
  test.each(rows.flatMap(([attrFilter, zapped]) => PAIRS.map((pair) => [attrFilter, pair, zapped] as const)))(
    'filter %i, bools %s: %s',
    (attrFilter, pair, zapped) => {
      const vm = makeMappedVm({ filterForm: 'attr-filter' });
      const range = { ...ALL, attrFilter, ...boolsOf(pair), arg: { attributes: 8 } };
      expect(zappedBy(vm, () => expect(vm.unmapGfnRange(range)).toBe(zapped !== 'nothing'))).toBe(zapped);
    },
  );

  test.each([
    [0, 0],
    [SHARED, 8],
    [PRIVATE, 8],
    [BOTH, 16],
  ])('filter %i ages %i leaves', (attrFilter, young) => {
    const vm = makeMappedVm({ filterForm: 'attr-filter' });
    expect(vm.testAgeGfn({ ...ALL, attrFilter })).toBe(young > 0);
    const moved = countersMoved(vm, () => expect(vm.ageGfn({ ...ALL, attrFilter })).toBe(young > 0));
    expect(moved.leafs_aged ?? 0).toBe(young);
  });
});

describe('a VM with one tree ignores the selectors', () => {
  const forms: FilterForm[] = ['rfc-v4', 'tdx-v18', 'gmem-v13', 'none'];
  const rows = (['default', 'sw-protected', 'snp'] as VmType[]).flatMap((type) =>
    forms.flatMap((form) => PAIRS.map((pair) => [type, form, pair] as const)),
  );
  test.each(rows.filter(([, form, pair]) => form !== 'gmem-v13' || pair !== '(T,T)'))(
    '%s, form %s, %s: everything in the range',
    (type, form, pair) => {
      const vm = makeMappedVm({ type, filterForm: form });
      expect(zappedBy(vm, () => expect(vm.unmapGfnRange({ ...ALL, ...boolsOf(pair) })).toBe(true))).toBe('both');
    },
  );

  test.each(['default', 'sw-protected', 'snp'] as VmType[])('gmem-v13 refuses (T,T) on %s as well', (type) => {
    const vm = makeMappedVm({ type, filterForm: 'gmem-v13' });
    const call = () => vm.unmapGfnRange({ ...ALL, ...boolsOf('(T,T)') });
    expect(call).toThrow(expect.objectContaining({ code: 'EINVAL' }));
    expect(vm.stats().pages_4k).toBe(16);
  });

  // The vendor callback of the RFC: TDX narrows (above), SNP waits for guest_memfd, the software-protected VM has none.
  test.each<[VmType, FilterForm, Zapped]>([
    ['snp', 'rfc-v4', 'nothing'],
    ['sw-protected', 'rfc-v4', 'both'],
    ['snp', 'attr-filter', 'both'],
    ['sw-protected', 'attr-filter', 'both'],
    ['snp', 'none', 'both'],
    ['sw-protected', 'none', 'both'],
  ])('set attributes to private on %s under %s zaps %s', (type, filterForm, zapped) => {
    const vm = makeMappedVm({ type, filterForm });
    expect(zappedBy(vm, () => convert(vm, 8))).toBe(zapped);
  });
});

// --- set_spte ------------------------------------------------------------------------------------------------------------

describe('set_spte', () => {
  const one = (gfn: number, writable: boolean) => ({
    slot: 0,
    start: gfn,
    end: gfn + 1,
    onlyShared: true,
    arg: { pte: { writable } },
  });

  test.each<KernelProfile>(['linux-6.12', 'linux-6.16'])('%s has none: EOPNOTSUPP, nothing changes', (kernel) => {
    const vm = makeMappedVm({ kernel });
    const before = vm.snapshot();
    expect(() => vm.setSpteGfn(one(0, true))).toThrow(expect.objectContaining({ code: 'EOPNOTSUPP' }));
    expect(() => vm.host.changePte({ hva: HVA, writable: true })).toThrow(
      expect.objectContaining({ code: 'EOPNOTSUPP' }),
    );
    expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
  });

  test('on the one gfn: a range of two is refused with EINVAL', () => {
    const vm = makeMappedVm();
    expect(() => vm.setSpteGfn({ ...one(0, true), end: 2 })).toThrow(expect.objectContaining({ code: 'EINVAL' }));
    expect(leavesOf(vm)).toEqual(['0..7 4K']);
  });

  test('a writable host pte: the 4K leaf is zapped, one flush', () => {
    const vm = makeMappedVm();
    const moved = countersMoved(vm, () => vm.host.changePte({ hva: HVA + 3 * PAGE, writable: true }));
    expect(moved).toMatchObject({ leafs_zapped_direct_4k: 1, remote_tlb_flush_requests: 1 });
    expect(moved.invalidations).toBeUndefined();
    expect(leavesOf(vm)).toEqual(['0..2 4K', '4..7 4K']);
    expect(vm.check()).toEqual([]);
  });

  test('a read-only host pte: the leaf is zapped and set again read-only, A cleared', () => {
    const vm = makeMappedVm();
    vm.host.changePte({ hva: HVA + 3 * PAGE, writable: false });
    const changes = eventsOf(vm, 'spte_changed') as unknown as {
      gfn: number;
      old: { class: string };
      new: { class: string };
    }[];
    expect(changes.map(({ gfn, old, new: after }) => `${gfn} ${old.class} -> ${after.class}`)).toEqual([
      '3 leaf -> nonpresent',
      '3 nonpresent -> leaf',
    ]);
    expect(changes[1].new).toMatchObject({
      writable: false,
      hostWritable: false,
      mmuWritable: false,
      accessed: false,
      executable: true,
    });
    expect(leavesOf(vm)).toEqual(['0..7 4K']);
    // A write goes the slow way: it breaks the copy on the host and is writable again.
    const moved = countersMoved(vm, () => vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'write', private: false }));
    expect(moved.pf_fast).toBeUndefined();
    expect(vm.walk(3 * PAGE, { root: 'direct' }).at(-1)?.spte).toMatchObject({ class: 'leaf', writable: true });
    expect(vm.check()).toEqual([]);
  });

  test('a gfn without a leaf: nothing changes, no flush', () => {
    const vm = makeMappedVm();
    vm.unmapGfnRange({ slot: 0, start: 3, end: 4, onlyShared: true });
    const moved = countersMoved(vm, () => expect(vm.setSpteGfn(one(3, false))).toBe(false));
    expect(moved.gfns_zapped).toBeUndefined();
    expect(leavesOf(vm)).toEqual(['0..2 4K', '4..7 4K']);
  });

  test('a huge leaf is left alone', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 512, kind: 'thp' }], mapped: [0] });
    expect(leavesOf(vm)).toEqual(['0..511 2M']);
    expect(vm.setSpteGfn(one(5, false))).toBe(false);
    expect(leavesOf(vm)).toEqual(['0..511 2M']);
    expect(eventsOf(vm, 'spte_changed')).toEqual([]);
  });
});

// Cells of the producers' table, and of the consumers', without a filter that a test can state:
//
// producer or pair        column   the cell                         here
// change_pte              E        no producer since 6.10           refused with EOPNOTSUPP
// gmem error_remove_folio B        the RFC's base: no zap at all     as 6.12 does, with (T,F)
// set attributes, post    B C E    (F,F), (F,F), unset               never read: no event shows them; nothing is zapped
// memslot delete, move    B        the RFC's base: no range          as 6.12 does, with (T,T)
// VM destruct             B        (T,T) in words, no code           no range is built
// VM destruct             C E      no range, root-wide               no range is built
// notifier release        B C E    no range, whole direct roots      part of VM destruct: there is no mm exit by itself
// zap_gfn_range           B E      no range, no filter               both trees
// zap_gfn_range           C        zap_private=false                 the direct tree only; no range is built
// (F,F) S3 code path      S3       the vendor op decides             S3 is not modelled; its vendors are the RFC's
// (T,F), (F,T), (T,T)     S3       not consumed                      S3 is not modelled
// any                     C        a skipped private root forgets    not modelled: the spec takes it for a bug
//                                  the flush owed so far
// filter 0                E        the kernel warns                  selects nothing; the warning is not shown
// any                     F G      chosen by the inode or its content  later kernels, not modelled
