// How large a guest fits one 4 GiB memory, and how many bytes does a page cost?
//
// Bytes a page are those of KVM's page tables alone: what a VM that maps nothing takes for the same is subtracted
// (planes.ts), and stands in the note. How many planes a row has is read from its guest's sptes.

import { mapAll, warmUp, zapWhole } from './peers/eptsim.ts';
import {
  ALL_PRESENT,
  clearLog,
  divergeByRuns,
  LOGGED,
  MOST,
  planesOf,
  type Storage,
  UNIFORM,
  vmWithLog,
} from './planes.ts';
import { type BenchContext, type Goal, type Row, row } from './rows.ts';
import { GIB, gfnsAnywhere, MIB, PAGE, READ_BACK, SEED, TIB } from './workloads.ts';

const STORAGES: readonly [Storage, Goal][] = [
  [UNIFORM, 'bytes per guest 4K page, uniform'],
  [LOGGED, 'bytes per guest 4K page, mixed, up to four planes'],
  [ALL_PRESENT, 'bytes per guest 4K page, mixed, up to four planes'],
  [MOST, 'bytes per guest 4K page, mixed, eight planes'],
];

/** What a row of bytes says beside its number. */
function noteOf(planes: readonly string[], ofAll: number): string {
  const differ = planes.length === 0 ? 'nothing differs' : `${planes.join(', ')} differ`;
  return `${differ}; page tables alone; ${ofAll.toFixed(3)} with dirty log, host's page table and the like`;
}

function bytesPerPage(storage: Storage, goal: Goal, guestBytes: number): Row {
  const vm = storage.make(guestBytes);
  const empty = vm.memoryUsed;
  storage.map(vm, guestBytes);
  const bare = storage.make(guestBytes);
  storage.mapNothing(bare, guestBytes);
  const pages = guestBytes / PAGE;
  const planes = planesOf(vm, guestBytes);
  return row({
    question: 'scale',
    guestBytes,
    density: storage.density,
    operation: 'bytes-per-page',
    planes: planes.length,
    contender: 'eptsim',
    bytesPerPage: (vm.memoryUsed - bare.memoryUsed) / pages,
    bytes: vm.memoryUsed,
    goal,
    note: noteOf(planes, (vm.memoryUsed - empty) / pages),
  });
}

/** Engine memory that a guest of `bytes` takes with nothing mapped, its dirty log as divergeByRuns() leaves it. */
function bareBytes(bytes: number): number {
  const vm = vmWithLog(bytes);
  clearLog(vm, bytes);
  return vm.memoryUsed;
}

function largest(guestBytes: number, density: 'full' | 'half', goal: Goal | null): Row {
  const isHalf = density === 'half';
  const bare = isHalf ? bareBytes(guestBytes) : undefined;
  const vm = vmWithLog(guestBytes);
  const empty = vm.memoryUsed;
  const start = performance.now();
  mapAll(vm, guestBytes);
  if (isHalf) divergeByRuns(vm, guestBytes);
  const seconds = (performance.now() - start) / 1000;
  const mapped = vm.stat('pages_4k');
  const used = vm.memoryUsed;
  const planes = planesOf(vm, guestBytes);
  const pages = guestBytes / PAGE;
  const { ns, leafs, looked } = zapWhole(vm, guestBytes, gfnsAnywhere(pages, READ_BACK, SEED));
  if (leafs !== mapped || looked !== 0) {
    throw new Error(`scale: ${leafs} of ${mapped} leaves were zapped, and ${looked} was read`);
  }
  const made = `${mapped} leaves mapped in ${seconds.toFixed(2)} s, memory ${(used / MIB).toFixed(2)} MiB`;
  return row({
    question: 'scale',
    guestBytes,
    density,
    operation: 'zap-whole',
    planes: planes.length,
    contender: 'eptsim',
    nsPerOperation: ns,
    nsPerPage: ns / pages,
    bytesPerPage: (used - (bare ?? empty)) / pages,
    bytes: used,
    goal,
    note: `${noteOf(planes, (used - empty) / pages)}; ${made}`,
  });
}

export default async function scale({ quick, say }: BenchContext): Promise<Row[]> {
  const rows: Row[] = [];
  const put = (found: Row) => {
    rows.push(found);
    const { guestBytes, density, bytesPerPage, note } = found;
    say(`${guestBytes / GIB} GiB ${density}: ${bytesPerPage!.toFixed(3)} bytes a page; ${note}`);
  };
  for (const [storage, goal] of STORAGES) put(bytesPerPage(storage, goal, (quick ? 1 : 16) * GIB));
  warmUp();
  const goal = quick ? null : 'largest guest in one 4 GiB memory, all 4K';
  put(largest(quick ? TIB : 64 * TIB, 'full', goal));
  put(largest(quick ? 16 * GIB : 8 * TIB, 'half', goal));
  return rows;
}
