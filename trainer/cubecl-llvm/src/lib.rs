//! cubecl-cuda 0.11 always links cubecl-llvm, whose build script downloads a prebuilt LLVM from a host that many
//! machines cannot reach, although kernels can equally be compiled by the driver's own NVRTC (its `cpp` feature, which
//! the trainer enables). This crate has the names cubecl-cuda mentions and nothing behind them: with `cpp` selected
//! none of it is ever called. Remove it once cubecl-cuda makes its LLVM backend optional.

use cubecl_core::prelude::KernelDefinition;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::BufferIOAttr;

const ABSENT: &str = "CUDA kernels are compiled by NVRTC in this build; its LLVM backend is not part of it";

/// The NVPTX target version, which only the absent backend reads.
pub mod nvptx {
    /// See the parent.
    pub mod ptx_version {
        /// Never constructed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(());

        impl PtxVersion {
            /// Always `None`: no PTX version is chosen here.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("none")
            }
        }
    }
}

/// What the absent backend could lower, which cubecl-cuda asks only when it is selected.
pub mod shared {
    /// See the parent.
    pub mod lowered_features {
        /// Targets.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA.
            Nvptx,
        }

        /// Not reached: only called for the absent backend.
        pub fn restrict_features(_: &mut cubecl_core::ir::DeviceProperties, _: GpuTarget) {
            panic!("{}", super::super::ABSENT);
        }
    }
}

/// Targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA.
    #[default]
    Nvptx,
}

/// Options of the absent compiler.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Unused.
    pub arch: Option<()>,
    /// Unused.
    pub sm_arch: Option<cubecl_core::ir::nvidia::SmArch>,
    /// Unused.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Unused.
    pub grid_constants: bool,
}

/// A compiled kernel of the absent compiler.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// NUL-terminated PTX.
    pub ptx: Vec<core::ffi::c_char>,
    /// Entry point.
    pub entrypoint: String,
    /// IR.
    pub ir: String,
    /// Bytes a launch reserves.
    pub shared_memory_size: usize,
    /// Buffer access modes.
    pub io: Vec<BufferIOAttr>,
}

/// Artifacts of the absent compiler.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// A kernel.
    NvptxCode(NvptxModule),
    /// Keeps the enum open, as the original's is.
    Other,
}

impl core::fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(ABSENT)
    }
}

/// Refuses every kernel.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// Target.
    pub target: LlvmTarget,
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(&mut self, _: KernelDefinition, _: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic { reason: ABSENT.into(), backtrace: Default::default() })
    }

    fn extension(&self) -> &'static str {
        "none"
    }

    fn lang_tag(&self) -> &'static str {
        "none"
    }
}
