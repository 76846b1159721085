// What must hold of a VM after any call, one checker each. A checker says what is wrong, or null.

import { type AnyEvent, meaningText } from './events.ts';

interface Leaf {
  asId: number;
  root: string;
  level: number;
  gfn: number;
  count: number;
}
/** The part of Vm that the checkers look at. */
interface Checked {
  stats(): Record<string, number>;
  leafs(): Leaf[];
  invalidate: { inProgress: number; start: number | null; end: number | null };
  check(): { kind: string; message: string }[];
  readonly dead: boolean;
}

const NAMES = ['', 'pages_4k', 'pages_2m', 'pages_1g'];

/** Leaf counters per level equal the leafs reachable from all live roots. */
export function leafCountersAreLeafs(vm: Checked): string | null {
  const counted = [0, 0, 0, 0];
  for (const { level, count } of vm.leafs()) counted[level] += count;
  const stats = vm.stats();
  for (const level of [1, 2, 3]) {
    if (stats[NAMES[level]] !== counted[level])
      return `${NAMES[level]} is ${stats[NAMES[level]]}, but ${counted[level]} leafs exist`;
  }
  return null;
}

/** Runs of leafs ascend and don't overlap. */
export function leafsAscend(vm: Checked): string | null {
  let before: Leaf | null = null;
  for (const leaf of vm.leafs()) {
    if (before && before.asId === leaf.asId && before.root === leaf.root) {
      const end = before.gfn + before.count * 512 ** (before.level - 1);
      if (leaf.gfn < end) return `leafs overlap at gfn ${leaf.gfn}`;
    }
    before = leaf;
  }
  return null;
}

/** Visits per level add up. */
export function visitsAddUp(vm: Checked): string | null {
  const stats = vm.stats();
  const sum = [1, 2, 3, 4, 5].reduce((total, level) => total + (stats[`entries_visited_l${level}`] ?? 0), 0);
  return sum === (stats.entries_visited ?? 0)
    ? null
    : `entries_visited is ${stats.entries_visited}, the levels have ${sum}`;
}

/** Tables that exist were allocated and not freed. */
export function tablesAddUp(vm: Checked): string | null {
  const { tables = 0, tables_allocated: allocated = 0, tables_freed: freed = 0 } = vm.stats();
  return tables === allocated - freed ? null : `${tables} tables, but ${allocated} allocated and ${freed} freed`;
}

/** The invalidation count is never negative. */
export function invalidationsBalance(vm: Checked): string | null {
  return vm.invalidate.inProgress >= 0 ? null : `${vm.invalidate.inProgress} invalidations in progress`;
}

/** No translation is gone without a flush done or owed, and the mirror agrees with what it mirrors. */
export function oracleFindsNoBug(vm: Checked): string | null {
  const finding = vm.check().find(({ kind }) => kind === 'unflushed' || kind === 'mirror-disagrees');
  return finding ? `check(): ${finding.kind}: ${finding.message}` : null;
}

export function checkInvariants(vm: Checked): (string | null)[] {
  return [
    leafCountersAreLeafs(vm),
    leafsAscend(vm),
    visitsAddUp(vm),
    tablesAddUp(vm),
    invalidationsBalance(vm),
    oracleFindsNoBug(vm),
  ];
}

interface Meaning {
  readonly class: string;
}
/**
 * A traced change that the kernel would not make: of a non-present entry to another one, unless MMIO or FROZEN is involved.
 * Also begins and ends that don't pair within `events`, unless `open` says how many were open before.
 */
export function eventsAreLegal(events: readonly AnyEvent[], open = 0): string | null {
  let depth = open;
  for (const event of events) {
    if (event.name === 'inv_begin') depth++;
    if (event.name === 'inv_end' && --depth < 0) return 'inv_end without inv_begin';
    if (event.name !== 'spte_changed') continue;
    const [old, after] = [event.old as Meaning, event.new as Meaning];
    const isSpecial = [old.class, after.class].some((name) => name === 'mmio' || name === 'frozen');
    if (old.class === 'nonpresent' && after.class === 'nonpresent') return 'a change from nothing to nothing';
    if (old.class === 'frozen') return `FROZEN became ${meaningText(after as never)} in the trace`;
    if (after.class === 'mmio' && !isSpecial) return 'an MMIO spte out of nowhere';
  }
  return null;
}
