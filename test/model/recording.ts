// Replays a recording of real KVM on the reference model and compares, op by op, the interleaved stream of SPTE changes and
// events, errno and the leafs and tables afterwards. Events that the model doesn't emit (get_page, load_pgd, …) are left out.

import type { ModelGuestMemfd } from './guest-memfd.ts';
import { ModelError, type ModelEvent, type ModelOptions, type meaning } from './kernel.ts';
import { ModelVm } from './model-vm.ts';

// biome-ignore lint/suspicious/noExplicitAny: a line of a recording is checked by what is done with it
type Json = any;

const COMPARED = new Set(
  [
    'unmap_gfn_range unmap_gfn_range_ret age_gfn age_gfn_ret test_age_gfn test_age_gfn_ret pre_attr post_attr',
    'kvm_unmap_hva_range kvm_age_hva inv_begin inv_add inv_end flush flush_range req zap_leafs zap_leafs_ret zap_root zap_all',
    'inv_roots zap_inv_roots zap_all_fast split_huge split_huge_page wrprot_slot clear_dirty_mask write_protect_gfn',
    'zap_collapsible set_memslot swap_memslots flush_shadow_memslot commit_region mmio_gen gmem_inval_begin',
    'flush_shadow_all reclaimed mark_mmio_spte zap_sp',
  ].flatMap((line) => line.split(' ')),
);
const COMPARED_STATS = [
  ...['remote_tlb_flush_requests', 'pages_4k', 'pages_2m', 'pages_1g', 'nx_lpage_splits', 'tlb_flush'],
  ...['pf_taken', 'pf_fixed', 'pf_emulate', 'pf_spurious', 'pf_fast', 'pf_mmio_spte_created'],
];
const FIRST_RUN_REQUEST = 790;
const CAPS: Record<string, number> = { MANUAL_DIRTY_LOG_PROTECT2: 168, DISABLE_QUIRKS2: 213 };
const CODE_GPA = 0xe0000000;

function meaningOfBits(spte: bigint, level: number): string {
  const bit = (n: bigint): boolean => ((spte >> n) & 1n) === 1n;
  if (spte === 0x80000000000005a0n) return 'frozen';
  if (bit(51n) && !bit(11n)) return `mmio ${((spte >> 3n) & 0xffn).toString()}`;
  if (!bit(11n)) return 'nonpresent';
  if (level > 1 && !bit(7n)) return 'table';
  const flags: [string, boolean][] = [
    ['w', bit(1n)],
    ['x', !bit(63n)],
    ['a', bit(5n)],
    ['d', bit(6n)],
    ['h', bit(9n)],
    ['m', bit(10n)],
  ];
  return `leaf ${flags.map(([name, set]) => (set ? name : '-')).join('')}`;
}
export function meaningText(m: ReturnType<typeof meaning>): string {
  if (m.class === 'mmio') return `mmio ${m.mmioGeneration}`;
  if (m.class !== 'leaf') return m.class;
  const flags: [string, boolean][] = [
    ['w', m.writable],
    ['x', m.executable],
    ['a', m.accessed],
    ['d', m.dirty],
    ['h', m.hostWritable],
    ['m', m.mmuWritable],
  ];
  return `leaf ${flags.map(([name, set]) => (set ? name : '-')).join('')}`;
}

const u64 = (text: string): bigint => BigInt.asUintN(64, BigInt(`0x${text}`));
const number = (value: Json): number => Number(value);

function expandChanges(changes: Json[]): string[] {
  const lines: string[] = [];
  for (const [asId, gfn, level, old, next, count, step, oldStep, nextStep] of changes) {
    for (let k = 0; k < (count ?? 1); k++) {
      const a = BigInt.asUintN(64, u64(old) + BigInt(k) * BigInt(oldStep ?? 0));
      const b = BigInt.asUintN(64, u64(next) + BigInt(k) * BigInt(nextStep ?? 0));
      const at = gfn + k * (step ?? 0);
      lines.push(`spte ${asId} ${at} ${level} ${meaningOfBits(a, level)} -> ${meaningOfBits(b, level)}`);
    }
  }
  return lines;
}
function expandEvents(events: Json[]): [number, string][] {
  const all: [number, Json[]][] = [];
  for (const event of events) {
    if (event[1] !== 'rep') {
      all.push([event[0], event.slice(1)]);
      continue;
    }
    const [, , count, bodies, steps] = event;
    for (let k = 0; k < count; k++) {
      bodies.forEach((body: Json[], index: number) => {
        const step = steps[index] as Json[];
        const fields = body.slice(2).map((field, i) => {
          const by = step[i + 2] ?? 0;
          if (typeof field === 'number') return field + k * by;
          return by === 0 ? field : (u64(field) + BigInt(k) * BigInt(by)).toString(16);
        });
        all.push([body[0] + k * step[0], [body[1], ...fields]]);
      });
    }
  }
  return all
    .filter(([, [name, nr]]) => COMPARED.has(name) && !(name === 'req' && nr === FIRST_RUN_REQUEST))
    .map(([at, e]) => [at, text(e)]);
}
function text([name, ...fields]: Json[]): string {
  const hex = name === 'kvm_unmap_hva_range' || name === 'kvm_age_hva';
  const f = fields.map((field) => (hex ? u64(field).toString() : `${field}`));
  if (name === 'split_huge_page') return `${name} ${f[0]} ${f[2]}`;
  if (name === 'mark_mmio_spte' || name === 'zap_all_fast') return name === 'zap_all_fast' ? name : `${name} ${f[0]}`;
  if (name === 'clear_dirty_mask') return `${name} ${f[0]} ${f[1]} ${BigInt(f[2] as string)}`;
  if (name === 'gmem_inval_begin') return [name, ...f.map((field) => Number(field))].join(' ');
  return [name, ...f].join(' ');
}
export function recordedStream(op: Json): string[] {
  const changes = expandChanges(op.spte_changes ?? []);
  const stream: string[] = [];
  let at = 0;
  for (const [position, event] of expandEvents(op.other_events ?? [])) {
    while (at < position) stream.push(changes[at++] as string);
    stream.push(event);
  }
  return stream.concat(changes.slice(at));
}

/** A model event in the words of a recording. */
export function eventText(event: ModelEvent): string {
  const e = event as Json;
  const b = (value: boolean): number => (value ? 1 : 0);
  switch (e.name) {
    case 'spte_changed':
      return `spte ${e.asId} ${e.gfn} ${e.level} ${meaningText(e.old)} -> ${meaningText(e.new)}`;
    case 'unmap_gfn_range':
    case 'age_gfn':
    case 'test_age_gfn':
      return `${e.name} ${e.slot} ${e.asId} ${e.start} ${e.end} ${e.arg} ${e.attrFilter} ${b(e.mayBlock)}`;
    case 'pre_attr':
    case 'post_attr':
      return `${e.name} ${e.slot} ${e.asId} ${e.start} ${e.end} ${e.arg} ${b(e.mayBlock)}`;
    default: {
      const fields = Object.entries(e).filter(([key]) => key !== 'name');
      return [e.name, ...fields.map(([, value]) => (typeof value === 'boolean' ? b(value) : `${value}`))].join(' ');
    }
  }
}

function optionsOf(header: Json): ModelOptions {
  return {
    kernel: 'linux-6.12',
    maxphyaddr: header.maxphyaddr,
    mmioCaching: header.kvm_params.mmio_caching === 'Y',
  };
}

export interface Mismatch {
  op: number;
  name: string;
  message: string;
}

export class Replay {
  readonly header: Json;
  readonly mismatches: Mismatch[] = [];
  private vm = new ModelVm();
  private readonly parameters: { nxHugePages: boolean; eagerPageSplit: boolean };
  private isCreated = false;
  private lastStats: Record<string, number> = {};
  private readonly gmems = new Map<number, ModelGuestMemfd>();

  constructor(header: Json) {
    this.header = header;
    const { nx_huge_pages: nx, eager_page_split: eager } = header.kvm_params;
    this.parameters = { nxHugePages: nx === 'Y' || nx === 'force', eagerPageSplit: eager === 'Y' };
  }

  run(ops: Json[]): Mismatch[] {
    for (const op of ops) {
      this.vm.trace();
      let errno: string | undefined;
      // The one yield in the corpus: the host rescheduled in the middle of the last zap.
      if (this.header.scenario === 'c04_swp_gmem_close' && op.i === 20) this.vm.yieldAt(66334);
      try {
        errno = this.perform(op);
      } catch (error) {
        if (!(error instanceof ModelError)) throw error;
        errno = error.code;
      }
      this.compare(op, errno);
    }
    return this.mismatches;
  }

  private perform(op: Json): string | undefined {
    const vm = this.vm;
    const hva = op.hva === undefined ? 0n : u64(op.hva);
    const range = { hva, length: op.len ?? 0 };
    switch (op.op) {
      case 'create_vm': {
        const type = op.type === 1 ? 'sw-protected' : 'default';
        this.vm = new ModelVm({ ...optionsOf(this.header), ...this.parameters, type });
        this.vm.host.mmap({ kind: 'anon4k', hva: 0x780000000000, length: 4096, prot: 7 });
        this.vm.hostModel.fault(0x780000000, true);
        this.vm.foreignFds.add(14).add(6);
        this.isCreated = true;
        return undefined;
      }
      case 'mmap':
        vm.host.mmap({ kind: op.kind, hva, length: op.size });
        return undefined;
      case 'mmap_fixed':
        vm.host.mmap({ kind: 'anon', hva, length: op.len });
        return undefined;
      case 'set_memslot': {
        const a = {
          slot: op.as_id * 65536 + op.slot,
          flags: op.flags,
          guestPhysAddr: u64(op.gpa),
          memorySize: u64(op.size),
          userspaceAddr: hva,
        };
        if (!op.v2) vm.setUserMemoryRegion(a);
        else vm.setUserMemoryRegion2({ ...a, guestMemfd: op.gmem, guestMemfdOffset: u64(op.gmem_off) });
        return undefined;
      }
      case 'madvise':
        vm.host.madvise({ ...range, advice: op.advice });
        return undefined;
      case 'munmap':
        vm.host.munmap(range);
        return undefined;
      case 'mprotect':
        vm.host.mprotect({ ...range, prot: op.prot });
        return undefined;
      case 'mremap':
        vm.host.mremap({ old: u64(op.old), length: op.len, new: u64(op.new) });
        return undefined;
      case 'host_access':
        vm.host.access({ ...range, write: op.write === 1, step: op.step });
        return undefined;
      case 'page_idle_set':
        vm.host.pageIdleSet({ hva, pages: op.pages });
        return undefined;
      case 'pre_fault_memory': {
        const a = { gpa: u64(op.gpa), size: u64(op.size), flags: op.flags };
        const left = vm.vcpus[0]?.preFaultMemory(a);
        if (left && op.errno === undefined && left.gpa !== u64(op.left_gpa)) return `left ${left.gpa}`;
        return undefined;
      }
      case 'guest_access':
        return this.guestAccess(op);
      case 'enter_smm':
        vm.vcpus[0]?.enterSmm();
        return undefined;
      case 'leave_smm':
        vm.vcpus[0]?.leaveSmm();
        return undefined;
      case 'enable_cap':
        vm.enableCap({ cap: CAPS[op.cap] ?? 0, args: [op.arg0] });
        return undefined;
      case 'get_dirty_log': {
        const dirty = vm.getDirtyLog({ slot: op.slot }).map(({ first, count }) => [first, count]);
        return JSON.stringify(dirty) === JSON.stringify(op.dirty) ? undefined : `dirty ${JSON.stringify(dirty)}`;
      }
      case 'clear_dirty_log':
        vm.clearDirtyLog({ slot: op.slot, firstPage: op.first, numPages: op.num, bitmap: u64(op.pattern) });
        return undefined;
      case 'create_guest_memfd': {
        const gmem = vm.createGuestMemfd({ size: u64(op.size), flags: op.flags });
        this.gmems.set(op.ret, vm.renumber(gmem.file, op.ret));
        return undefined;
      }
      case 'close_gmem':
        this.gmems.get(op.gmem)?.close();
        return undefined;
      case 'fallocate':
        this.gmems.get(op.gmem)?.fallocate({ mode: op.mode_raw, offset: u64(op.off), length: u64(op.len) });
        return undefined;
      case 'set_attributes':
        vm.setMemoryAttributes({
          address: u64(op.gpa),
          size: u64(op.size),
          attributes: u64(op.attributes),
          flags: op.flags,
        });
        return undefined;
      case 'write_param':
        this.writeParameter(op.path, op.value);
        // The recovery worker runs when the ratio allows it.
        if (op.path.endsWith('/nx_huge_pages_recovery_ratio') && op.value === '1') vm.recoverNxHugePages();
        return undefined;
      case 'page_idle_read':
        vm.host.pageIdleRead({ hva, pages: op.pages });
        return undefined;
      case 'destroy_vm':
        vm.destroy();
        this.isCreated = false;
        return undefined;
      default:
        return undefined;
    }
  }

  private writeParameter(path: string, value: string): void {
    if (path.endsWith('/eager_page_split')) {
      this.parameters.eagerPageSplit = value === 'Y';
      if (this.isCreated) this.vm.writeParameter('eager_page_split', value === 'Y');
    }
    if (path.endsWith('/nx_huge_pages')) {
      this.parameters.nxHugePages = value === 'force';
      if (this.isCreated) this.vm.writeParameter('nx_huge_pages', value === 'force');
    }
  }

  private guestAccess(op: Json): string | undefined {
    const vcpu = this.vm.vcpus[0];
    const exits: Json[] = [];
    vcpu?.access({ gpa: CODE_GPA, kind: 'exec' });
    for (let k = 0; k < op.count; k++) {
      const gpa = u64(op.gpa) + BigInt(k) * u64(op.stride);
      const exit = vcpu?.access({ gpa, kind: op.kind });
      if (exit?.reason === 'mmio') exits.push(['mmio', exit.gpa?.toString(16), exit.isWrite ? 1 : 0, 4]);
      if (exit?.reason === 'memory_fault') exits.push(['memory_fault', exit.gpa?.toString(16), exit.flags]);
      if (exit?.reason === 'error') exits.push(['err', exit.errno === 'EFAULT' ? 14 : exit.errno]);
      if (exit?.errno) break;
    }
    const recorded = op.exits
      .filter(([name]: Json[]) => name !== 'hlt')
      .map((exit: Json[]) =>
        exit[0] === 'memory_fault' ? [exit[0], exit[1], BigInt(exit[3])] : exit.slice(0, exit[0] === 'err' ? 2 : 4),
      );
    const same = String(recorded) === String(exits);
    return same ? undefined : `exits ${String(exits).slice(0, 200)} instead of ${String(recorded).slice(0, 200)}`;
  }

  private compare(op: Json, errno: string | undefined): void {
    const report = (message: string): void => {
      this.mismatches.push({ op: op.i, name: op.op, message });
    };
    let expected = recordedStream(op);
    // The recorder's own munmap.
    if (op.op === 'destroy_vm' && expected[0]?.startsWith('kvm_unmap_hva_range')) expected = expected.slice(1);
    const actual = this.vm.trace().map(eventText);
    const recordedErrno = op.errno === 'ENOTSUP' ? 'EOPNOTSUPP' : op.errno;
    if (op.op !== 'guest_access' && errno !== recordedErrno) report(`errno ${errno} instead of ${recordedErrno}`);
    if (op.op === 'guest_access' && errno !== undefined) report(errno);
    for (let k = 0; k < Math.max(expected.length, actual.length); k++) {
      if (expected[k] === actual[k]) continue;
      report(`event ${k}: ${actual[k]} instead of ${expected[k]}`);
      break;
    }
    const stats = this.vm.stats();
    if (op.op !== 'destroy_vm' && op.op !== 'close_gmem' && op.op !== 'create_vm') {
      for (const name of COMPARED_STATS) {
        const delta = (stats[name] ?? 0) - (this.lastStats[name] ?? 0);
        const recorded = op.stats?.[`vm.${name}`] ?? op.stats?.[`vcpu.${name}`] ?? 0;
        if (delta !== recorded) report(`${name} ${delta} instead of ${recorded}`);
      }
    }
    this.lastStats = stats;
    if (op.leafs) {
      const leafs = [stats.pages_4k, stats.pages_2m, stats.pages_1g].join();
      if (leafs !== op.leafs.join()) report(`leafs ${leafs} instead of ${op.leafs.join()}`);
      if (number(stats.tables) !== op.tables) report(`tables ${stats.tables} instead of ${op.tables}`);
    }
  }
}
