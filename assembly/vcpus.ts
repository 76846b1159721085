// The vCPU records: which root each has loaded, which address space it is in, what it has yet to flush.
// Mirrors: struct kvm_vcpu (include/linux/kvm_host.h), struct kvm_mmu (arch/x86/include/asm/kvm_host.h)

import { VCPU_BYTES, VCPUS_BASE } from './layout';

// Vcpu, 64 bytes. A root is an index + 1, 0 = none.
@unmanaged
export class Vcpu {
  root: u32;
  mirrorRoot: u32;
  asId: u32;
  everRun: u32;
  flushEpoch: u32;
  inGuest: u32;
  /** Inside the TD: counted among the readers of tdEpoch. */
  inTd: u32;
  mmioValid: u32;
  mmioGfn: u64;
  mmioGeneration: u32;
  /** EPT faults without progress, for zero-step mitigation; ENTERING while such an entry holds the tree. */
  eptFaults: u32;
  tdEpoch: u64;
  /** An ACCEPT between its two steps: gfn and, in the top bits, its level. */
  acceptGfnLevel: u64;

  get acceptLevel(): u32 {
    return <u32>(this.acceptGfnLevel >> 60);
  }
  get acceptGfn(): u64 {
    return this.acceptGfnLevel & (((<u64>1) << 60) - 1);
  }
}
if (offsetof<Vcpu>() != 64) ERROR('Vcpu is no longer 64 bytes: redraw it');

export function vcpuAt(index: u32): Vcpu {
  return changetype<Vcpu>(VCPUS_BASE + <usize>index * VCPU_BYTES);
}

export function indexOfVcpu(vcpu: Vcpu): u32 {
  return <u32>((changetype<usize>(vcpu) - VCPUS_BASE) / VCPU_BYTES);
}
