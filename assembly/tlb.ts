// Remote TLB flushes, counted. A flush is a request to every vCPU: those in guest mode are kicked, the others flush when
// they next enter. x86 on bare metal has no ranged flush, so a ranged one is a full request with a name.
// Mirrors: virt/kvm/kvm_main.c (kvm_flush_remote_tlbs), arch/x86/kvm/mmu/mmu.c (kvm_flush_remote_tlbs_range)

import { C_REMOTE_TLB_FLUSH, C_REMOTE_TLB_FLUSH_REQUESTS, C_TLB_FLUSH, count, ctl, VM_TDX } from './control';
import { vcpuFaults } from './faults';
import { EV_FLUSH, EV_FLUSH_RANGE, EV_REQ, trace, trace2 } from './trace';
import { Vcpu, vcpuAt } from './vcpus';

/** KVM_REQ_TLB_FLUSH and KVM_REQ_MMU_FREE_OBSOLETE_ROOTS as the tracepoint shows them. */
export const REQ_TLB_FLUSH: u32 = 768;
export const REQ_FREE_OBSOLETE_ROOTS: u32 = 807;

/** Whether any vCPU runs guest code at this moment: none that is in a fault, none of a VM that died. */
function meetsVcpu(): bool {
  if (ctl.dead != 0) return false;
  for (let index: u32 = 0; index < ctl.vcpuCount; index++) {
    const vcpu = vcpuAt(index);
    const runs = ctl.vmType == VM_TDX ? vcpu.inTd : vcpu.inGuest;
    if (runs != 0 && (ctl.vmType == VM_TDX || !vcpuFaults(index))) return true;
  }
  return false;
}

/** What a vCPU does before it enters the guest, if a flush was requested since it last did. */
export function flushIfAsked(vcpu: Vcpu): void {
  if (vcpu.flushEpoch == ctl.flushEpoch) return;
  vcpu.flushEpoch = ctl.flushEpoch;
  count(C_TLB_FLUSH, 1);
}

/** Mirrors: kvm_flush_remote_tlbs(), virt/kvm/kvm_main.c */
export function flushRemoteTlbs(): void {
  count(C_REMOTE_TLB_FLUSH_REQUESTS, 1);
  trace(EV_FLUSH, 0, 0, 0);
  trace(EV_REQ, 0, REQ_TLB_FLUSH, 0);
  ctl.flushEpoch++;
  ctl.flushOwed = 0;
  if (meetsVcpu()) count(C_REMOTE_TLB_FLUSH, 1);
}

/** Mirrors: kvm_flush_remote_tlbs_range(), virt/kvm/kvm_main.c */
export function flushRemoteTlbsRange(startGfn: u64, npages: u64): void {
  trace2(EV_FLUSH_RANGE, 0, 0, startGfn, npages, 0);
  flushRemoteTlbs();
}
