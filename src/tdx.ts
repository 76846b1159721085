// A TD's module: its S-EPT, the calls made to it, the build phase and the end. `vm.tdx` of a TDX VM.

import { GATE_CLOSE, GATE_OPERATION, GATE_VCPU } from './engine/exports.ts';
import { check, halvesOf, integer, object, oneOf, type U64 } from './errors.ts';
import type { Vm } from './vm.ts';

/** The leaf functions in the engine's order (assembly/tdx_module.ts). */
export const LEAF_NAMES = [
  'TDH.MEM.SEPT.ADD',
  'TDH.MEM.PAGE.ADD',
  'TDH.MEM.PAGE.AUG',
  'TDH.MEM.RANGE.BLOCK',
  'TDH.MEM.TRACK',
  'TDH.MEM.PAGE.REMOVE',
  'TDH.MEM.PAGE.DEMOTE',
  'TDH.MEM.PAGE.PROMOTE',
  'TDG.MEM.PAGE.ACCEPT',
  'TDH.MR.EXTEND',
  'TDH.MR.FINALIZE',
  'TDH.VP.ENTER',
  'TDH.VP.FLUSH',
  'TDH.MNG.VPFLUSHDONE',
  'TDH.PHYMEM.CACHE.WB',
  'TDH.MNG.KEY.FREEID',
  'TDH.PHYMEM.PAGE.RECLAIM',
  'TDH.PHYMEM.PAGE.WBINVD',
] as const;
export type LeafName = (typeof LEAF_NAMES)[number];
/** Those that seamcall() makes: the calls on S-EPT entries, and the guest's ACCEPT. */
export type CallableLeaf = Extract<LeafName, `TDH.MEM.${string}` | 'TDG.MEM.PAGE.ACCEPT'>;
export const CALLABLE_LEAFS = LEAF_NAMES.slice(0, 9) as readonly CallableLeaf[];

/** Completion statuses in the engine's order, by the names of the TDX module. EPT_VIOLATION is an ACCEPT's TD exit. */
export const STATUS_NAMES = [
  'TDX_SUCCESS',
  'TDX_OPERAND_INVALID',
  'TDX_OPERAND_BUSY',
  'TDX_EPT_WALK_FAILED',
  'TDX_EPT_ENTRY_STATE_INCORRECT',
  'TDX_GPA_RANGE_ALREADY_BLOCKED',
  'TDX_GPA_RANGE_NOT_BLOCKED',
  'TDX_TLB_TRACKING_NOT_DONE',
  'TDX_PREVIOUS_TLB_EPOCH_BUSY',
  'TDX_PAGE_METADATA_INCORRECT',
  'TDX_OP_STATE_INCORRECT',
  'TDX_PAGE_ALREADY_ACCEPTED',
  'TDX_PAGE_SIZE_MISMATCH',
  'TDX_INTERRUPTED_RESTARTABLE',
  'TDX_FLUSHVP_NOT_DONE',
  'EPT_VIOLATION',
] as const;
export type TdxStatus = (typeof STATUS_NAMES)[number];

export const SEPT_STATES = [
  'FREE',
  'MAPPED',
  'PENDING',
  'BLOCKED',
  'PENDING_BLOCKED',
  'NL_MAPPED',
  'NL_BLOCKED',
] as const;
export type SeptState = (typeof SEPT_STATES)[number];

/** `count` S-EPT leaves of `level` from `gfn` on, alike in state. */
export interface SeptRun {
  level: number;
  gfn: number;
  count: number;
  state: SeptState;
}

/** What a TD's policies are; each default is what Linux 6.16 does. */
export interface TdOptions {
  /** Start before KVM_TDX_FINALIZE_VM: pages are added with initMemRegion(), no vCPU can run. Default false. */
  build?: boolean;
  /** Private pages of 2M where they fit, as the huge page series would map them (a what-if). Default false. */
  hugePages?: boolean;
  /**
   * A zap whose range ends inside a private 2M leaf: 'whole-leaf' zaps it whole (default), 'split-first' splits every 2M leaf
   * of the range before, 'split-boundary' only those at its ends.
   */
  zap?: ZapPolicy;
  /** One TRACK and kick for each page ('per-page', default), or one for each walk (a what-if). */
  track?: TrackPolicy;
  /** A private fault that must retry is tried again without entering the guest between (default true). */
  localRetry?: boolean;
  /** CPU packages whose caches TDH.PHYMEM.CACHE.WB writes back; default 1. */
  packages?: number;
}
export const ZAP_POLICIES = ['whole-leaf', 'split-first', 'split-boundary'] as const;
export type ZapPolicy = (typeof ZAP_POLICIES)[number];
export const TRACK_POLICIES = ['per-page', 'batched'] as const;
export type TrackPolicy = (typeof TRACK_POLICIES)[number];

/** The state that an S-EPT leaf's flags mean (assembly/tdx_module.ts). */
export function septStateOf(flags: number): SeptState {
  if ((flags & 1) === 0) return 'FREE';
  if ((flags & 8) !== 0) return (flags & 2) !== 0 ? 'PENDING_BLOCKED' : 'BLOCKED';
  return (flags & 2) !== 0 ? 'PENDING' : 'MAPPED';
}

export class TdxModule {
  readonly #vm: Vm;

  /** Made with the VM. */
  constructor(vm: Vm) {
    this.#vm = vm;
  }

  /** The TLB epoch: how often TDH.MEM.TRACK succeeded, plus 1. */
  get epoch(): number {
    return this.#vm.tdState().epoch;
  }
  /** 'build' until finalize(), then 'runnable'; 'teardown' once the key is released. */
  get state(): 'build' | 'runnable' | 'teardown' {
    return this.#vm.tdState().state;
  }

  /**
   * The S-EPT entry that a walk for `gpa` ends at: its state and level. With `level` (1 to 5) the entry of that level, which
   * may link a table (NL_MAPPED), unless the walk ends above it. NL_BLOCKED: at or below a table that is blocked.
   * @throws {RangeError} if `gpa` is not page aligned and below 2^52
   */
  entry(gpa: U64, level?: number): { state: SeptState; level: number } {
    const gfn = gfnOf(gpa, 'gpa');
    const asked = level === undefined ? 0 : integer(level, 'level', 1, 5);
    const packed = check(this.#vm.inspectSept(gfn, asked), 'entry', { gpa });
    const reached = (packed >>> 8) & 15;
    if ((packed & 0x10000) !== 0) return { state: 'NL_BLOCKED', level: reached };
    return { state: (packed & 0x20000) !== 0 ? 'NL_MAPPED' : septStateOf(packed & 255), level: reached };
  }

  /** The S-EPT's leaves, as runs by gfn. */
  leafs(): SeptRun[] {
    return this.#vm.septLeafs();
  }

  /**
   * One call of a leaf function, past KVM: the mirror learns nothing of it, and vm.check() says so. `gpa` and `level` (1: 4K,
   * 2: 2M, 3: 1G) name the page or the entry; of SEPT.ADD the entry that is to link a table.
   * @returns the completion status; a refusal is no error here
   * @throws {KvmError} EINVAL on a VM that is no TD
   */
  seamcall(leaf: CallableLeaf, args: { gpa?: U64; level?: number } = {}): TdxStatus {
    const index = CALLABLE_LEAFS.indexOf(oneOf(leaf, 'leaf', CALLABLE_LEAFS));
    object(args, 'args');
    const gfn = gfnOf(args.gpa ?? 0, 'gpa');
    const level = integer(args.level ?? 1, 'level', 1, 5);
    return this.#vm.operate('abiSeamcall', [index, gfn, level], GATE_VCPU, (status) => {
      return STATUS_NAMES[check(status, 'seamcall', { leaf, ...args })];
    });
  }

  /**
   * Lets calls of `leaf` fail: after `skip` more, the next `times` end with `status` and change nothing. Replaces what was
   * asked for before.
   */
  injectStatus(args: { leaf: LeafName; status: TdxStatus; skip?: number; times?: number }): void {
    object(args, 'args');
    const leaf = LEAF_NAMES.indexOf(oneOf(args.leaf, 'leaf', LEAF_NAMES));
    const status = STATUS_NAMES.indexOf(oneOf(args.status, 'status', STATUS_NAMES));
    if (args.status === 'EPT_VIOLATION' && args.leaf !== 'TDG.MEM.PAGE.ACCEPT') {
      throw new RangeError(`status is "EPT_VIOLATION": only TDG.MEM.PAGE.ACCEPT ends so, not ${args.leaf}`);
    }
    const skip = integer(args.skip ?? 0, 'skip', 0, 2 ** 32 - 1);
    const times = integer(args.times ?? 1, 'times', 0, 2 ** 32 - 1);
    this.#vm.operate('abiInjectStatus', [leaf, status, skip, times], GATE_VCPU, (result) => {
      check(result, 'injectStatus', args);
    });
  }

  /** How often each leaf function ended in each status other than success; only those that did. */
  statuses(): Partial<Record<LeafName, Partial<Record<TdxStatus, number>>>> {
    const table: Partial<Record<LeafName, Partial<Record<TdxStatus, number>>>> = {};
    this.#vm.tdState();
    for (const [leaf, name] of LEAF_NAMES.entries()) {
      for (const [status, statusName] of STATUS_NAMES.entries()) {
        const times = status === 0 ? 0 : this.#vm.seamcallStatus(leaf, status);
        if (times > 0) table[name] = { ...table[name], [statusName]: times };
      }
    }
    return table;
  }

  /**
   * KVM_TDX_FINALIZE_VM: measured and complete, the TD can run.
   * @throws {KvmError} EINVAL: finalized before, or a page is mapped whose PAGE.ADD failed
   */
  finalize(): void {
    this.#vm.operate('tdxFinalize', [], GATE_OPERATION, (status) => void check(status, 'finalize', {}));
  }

  /**
   * KVM_TDX_TERMINATE_VM (proposed for 6.17): gives the key back at once. The VM is dead; what is destroyed afterwards is
   * reclaimed page by page, without BLOCK, TRACK and kicks.
   * @throws {KvmError} EINVAL on a VM that is no TD
   */
  terminate(): void {
    this.#vm.operate('tdxTerminateVm', [], GATE_CLOSE, (status) => void check(status, 'terminate', {}));
  }
}

/** The gfn of an address: page aligned, below 2^52. */
function gfnOf(value: unknown, name: string): number {
  const [low, high] = halvesOf(value, name);
  const gpa = low + high * 4294967296;
  if (gpa >= 2 ** 52) throw new RangeError(`${name} is 0x${gpa.toString(16)}: it must be below 2^52`);
  if (gpa % 4096 !== 0) throw new RangeError(`${name} is 0x${gpa.toString(16)}: it must be a multiple of 4096`);
  return gpa / 4096;
}
