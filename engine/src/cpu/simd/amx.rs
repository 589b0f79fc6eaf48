//! AMX: tiles of the processor, and the system's permission to use them.
//!
//! There are no stable intrinsics, so this is assembly. One block of it loads the configuration, computes a strip and
//! releases the tiles: nothing that the compiler does not know of lives on between two blocks, and each thread has its
//! own tiles because each block configures them.
#![expect(unsafe_code, reason = "assembly")]

use std::{
    arch::{asm, x86_64::__cpuid_count},
    mem::offset_of,
    sync::OnceLock,
};

use super::tiles::{A_STEP, Strip, Tiles};

/// The processor's tiles.
pub(crate) struct Amx;

// SAFETY: the assembly reads and writes the strip, what its tiles cover of the factors and the result, and nothing else.
unsafe impl Tiles for Amx {
    const ARE_HERE: bool = true;

    unsafe fn multiply(strip: &mut Strip) {
        let (a_stride, b_stride, c_stride) = (strip.a_stride, strip.b_stride, strip.c_stride);
        // SAFETY: the caller has tiles and permission, and valid pointers; the shape of `strip` is one that
        // `ldtilecfg` takes (`Strip::new`). All registers are named, flags and memory are taken as changed, and the
        // tiles are in their initial state at the end as at the beginning. It neither unwinds nor uses the stack.
        unsafe {
            asm!(
                "ldtilecfg [{strip}]",
                // Blocks.
                "2:",
                "cmp qword ptr [{strip} + {at_goes_on}], 0",
                "jne 3f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 4f",
                "3:",
                "mov {p}, qword ptr [{strip} + {at_c}]",
                "mov {q}, qword ptr [{strip} + {at_c} + 8]",
                "tileloadd tmm0, [{p} + {c_stride}*1]",
                "tileloadd tmm2, [{q} + {c_stride}*1]",
                "add {p}, qword ptr [{strip} + {at_c_right}]",
                "add {q}, qword ptr [{strip} + {at_c_right}]",
                "tileloadd tmm1, [{p} + {c_stride}*1]",
                "tileloadd tmm3, [{q} + {c_stride}*1]",
                "4:",
                "mov {p}, qword ptr [{strip} + {at_a}]",
                "mov {q}, qword ptr [{strip} + {at_a} + 8]",
                "mov {left}, qword ptr [{strip} + {at_b}]",
                "mov {right}, qword ptr [{strip} + {at_b} + 8]",
                "mov {n}, qword ptr [{strip} + {at_n_steps}]",
                // Steps.
                "5:",
                "tileloadd tmm6, [{left} + {b_stride}*1]",
                "tileloadd tmm4, [{p} + {a_stride}*1]",
                "tileloadd tmm7, [{right} + {b_stride}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{q} + {a_stride}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {p}, {a_step}",
                "add {q}, {a_step}",
                "add {left}, qword ptr [{strip} + {at_b_step}]",
                "add {right}, qword ptr [{strip} + {at_b_step}]",
                "dec {n}",
                "jnz 5b",
                "mov {p}, qword ptr [{strip} + {at_c}]",
                "mov {q}, qword ptr [{strip} + {at_c} + 8]",
                "tilestored [{p} + {c_stride}*1], tmm0",
                "tilestored [{q} + {c_stride}*1], tmm2",
                "add {p}, qword ptr [{strip} + {at_c_right}]",
                "add {q}, qword ptr [{strip} + {at_c_right}]",
                "tilestored [{p} + {c_stride}*1], tmm1",
                "tilestored [{q} + {c_stride}*1], tmm3",
                // On to the next block.
                "mov {n}, qword ptr [{strip} + {at_a_block}]",
                "add qword ptr [{strip} + {at_a}], {n}",
                "add qword ptr [{strip} + {at_a} + 8], {n}",
                "mov {n}, qword ptr [{strip} + {at_c_block}]",
                "add qword ptr [{strip} + {at_c}], {n}",
                "add qword ptr [{strip} + {at_c} + 8], {n}",
                "dec qword ptr [{strip} + {at_n_blocks}]",
                "jnz 2b",
                "tilerelease",
                strip = in(reg) std::ptr::from_mut(strip),
                a_stride = in(reg) a_stride,
                b_stride = in(reg) b_stride,
                c_stride = in(reg) c_stride,
                p = out(reg) _,
                q = out(reg) _,
                left = out(reg) _,
                right = out(reg) _,
                n = out(reg) _,
                a_step = const A_STEP,
                at_a = const offset_of!(Strip, a),
                at_b = const offset_of!(Strip, b),
                at_c = const offset_of!(Strip, c),
                at_n_blocks = const offset_of!(Strip, n_blocks),
                at_n_steps = const offset_of!(Strip, n_steps),
                at_goes_on = const offset_of!(Strip, goes_on),
                at_b_step = const offset_of!(Strip, b_step),
                at_c_right = const offset_of!(Strip, c_right),
                at_a_block = const offset_of!(Strip, a_block),
                at_c_block = const offset_of!(Strip, c_block),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Whether this processor has tiles of bf16 and the system lets this process use them; asks it at the first call.
pub(crate) fn tiles_are_granted() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| tiles_are_here() && ask_for_tiles())
}

/// AMX-TILE and AMX-BF16, and a palette 1 of eight tiles of sixteen rows of 64 bytes (Intel's manual, `CPUID`).
fn tiles_are_here() -> bool {
    const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    let highest_leaf = __cpuid_count(0, 0).eax;
    if highest_leaf < 0x1d || __cpuid_count(7, 0).edx & BF16_AND_TILE != BF16_AND_TILE {
        return false;
    }
    let palette = __cpuid_count(0x1d, 1);
    palette.ebx == 8 << 16 | 64 && palette.ecx & 0xffff == 16
}

/// Linux saves tiles only of processes that have asked: for all their threads, for good
/// (`Documentation/arch/x86/xstate.rst`).
#[cfg(target_os = "linux")]
fn ask_for_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: two numbers go in, and no memory of this process is touched. A kernel that does not know it refuses.
    let result =
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
    result == 0
}

/// How other systems grant tiles is not known here.
#[cfg(not(target_os = "linux"))]
fn ask_for_tiles() -> bool {
    false
}
