// Read-only views for people: leaves as runs, a walk, what the oracle found.

import { type SeptRun, septStateOf } from './tdx.ts';
import { leafMeaning, type SpteMeaning, spteMeaning } from './trace.ts';

/** `count` leaves of `level` from `gfn` on, alike in flags. */
export interface LeafRun {
  asId: number;
  root: 'direct' | 'mirror';
  level: number;
  gfn: number;
  count: number;
  spte: SpteMeaning;
}

/** One entry of a walk from the root down. */
export interface WalkEntry {
  level: number;
  /** Index in its table. */
  index: number;
  /** First gfn that the entry covers. */
  gfn: number;
  spte: SpteMeaning;
  /** A table in which huge pages are not allowed (nx_huge_pages). */
  nxDisallowed?: boolean;
}

/** Something that must not be, and where. */
export interface CheckFinding {
  kind: (typeof FINDINGS)[number];
  asId: number;
  root: 'direct' | 'mirror';
  gfn: number;
  count: number;
  message: string;
}

const RECORD_DOUBLES = 6;

/** Appends the leaf records to `runs`, joining those that go on. Returns the gfn behind the last. */
export function decodeLeafs(
  doubles: Float64Array,
  count: number,
  root: { mirror: boolean; asId: number },
  runs: LeafRun[],
): number {
  let next = 0;
  const kind = root.mirror ? 'mirror' : 'direct';
  for (let record = 0; record < count; record++) {
    const at = record * RECORD_DOUBLES;
    const level = doubles[at];
    const gfn = doubles[at + 1];
    const leafs = doubles[at + 2];
    const spte = leafMeaning(doubles[at + 3], root.mirror);
    const last = runs[runs.length - 1];
    const pages = 512 ** (level - 1);
    next = gfn + leafs * pages;
    if (
      last !== undefined &&
      last.spte === spte &&
      last.level === level &&
      last.root === kind &&
      last.asId === root.asId &&
      last.gfn + last.count * pages === gfn
    ) {
      last.count += leafs;
    } else {
      runs.push({ asId: root.asId, root: kind, level, gfn, count: leafs, spte });
    }
  }
  return next;
}

/** As decodeLeafs(), for the S-EPT's records. */
export function decodeSept(doubles: Float64Array, count: number, runs: SeptRun[]): number {
  let next = 0;
  for (let record = 0; record < count; record++) {
    const at = record * RECORD_DOUBLES;
    const level = doubles[at];
    const gfn = doubles[at + 1];
    const leafs = doubles[at + 2];
    const state = septStateOf(doubles[at + 3]);
    const pages = 512 ** (level - 1);
    next = gfn + leafs * pages;
    const last = runs[runs.length - 1];
    if (last?.state === state && last.level === level && last.gfn + last.count * pages === gfn) last.count += leafs;
    else runs.push({ level, gfn, count: leafs, state });
  }
  return next;
}

export function decodeWalk(doubles: Float64Array, count: number, mirror: boolean): WalkEntry[] {
  const entries: WalkEntry[] = [];
  for (let record = 0; record < count; record++) {
    const at = record * RECORD_DOUBLES;
    const spteClass = doubles[at + 1];
    const flags = doubles[at + 2];
    entries.push({
      level: doubles[at],
      index: doubles[at + 5],
      gfn: doubles[at + 3],
      spte: spteClass === 4 ? leafMeaning(flags, mirror) : spteMeaning(spteClass | (flags << 3), mirror),
      ...(doubles[at + 4] === 1 ? { nxDisallowed: true } : {}),
    });
  }
  return entries;
}

const FINDINGS = [
  'stale-backing',
  'kind-mismatch',
  'unflushed',
  'mirror-disagrees',
  'sept-disagrees',
  'rmp-stale',
  'rmp-disagrees',
] as const;
const MEANS: Readonly<Record<CheckFinding['kind'], string>> = {
  'stale-backing': 'leaves map a page that was freed or replaced',
  'kind-mismatch': 'leaves are of the other kind than the attribute of their gfns',
  unflushed: 'translations were zapped, and nobody owes or did the flush',
  'mirror-disagrees': 'mirror leaves have no private page behind them',
  'sept-disagrees': 'the mirror and the S-EPT disagree on what is mapped, or a leaf is blocked',
  'rmp-stale': 'pages of a guest_memfd that are not allocated are assigned in the RMP',
  'rmp-disagrees': 'private leaves map pages whose RMP entries are missing, smaller or of another gpa',
};

export function decodeCheck(doubles: Float64Array, count: number, capacity: number): CheckFinding[] {
  const findings: CheckFinding[] = [];
  for (let record = 0; record < Math.min(count, capacity); record++) {
    const at = record * RECORD_DOUBLES;
    const kind = FINDINGS[doubles[at] - 1];
    const gfn = doubles[at + 3];
    const gfns = doubles[at + 4];
    const root = doubles[at + 2] === 1 ? 'mirror' : 'direct';
    const where =
      kind === 'unflushed'
        ? ''
        : kind === 'rmp-stale'
          ? `pages [${gfn}, ${gfn + gfns}): `
          : `[0x${gfn.toString(16)}, 0x${(gfn + gfns).toString(16)}) of the ${root} root: `;
    findings.push({ kind, asId: doubles[at + 1], root, gfn, count: gfns, message: `${where}${MEANS[kind]}` });
  }
  return findings;
}
