//! From a [`Program`] to the text of a module: storage prelude, constants, imports, body.

use crate::kernel::Program;
use mobilediffusion_runtime::shader::{self, Compose};

/// How floats of type `Elem` are stored on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Storage {
    /// 32 bits, everywhere.
    #[default]
    F32,
    /// 16 bits, on devices with the feature `SHADER_F16`.
    F16,
    /// 16 bits, two in a u32, on devices without it.
    F16Packed,
}

impl Storage {
    /// Bytes of one stored element.
    pub fn elem_bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Defines `Pack` (four stored elements), `load4` and `store4`. Values beyond f16's range saturate when stored.
    fn prelude(self) -> &'static str {
        match self {
            Self::F32 => {
                "alias Pack = vec4<f32>;\n\
                 fn load4(p: Pack) -> vec4<f32> { return p; }\n\
                 fn store4(v: vec4<f32>) -> Pack { return v; }\n"
            }
            Self::F16 => {
                "enable f16;\n\
                 alias Pack = vec4<f16>;\n\
                 fn load4(p: Pack) -> vec4<f32> { return vec4<f32>(p); }\n\
                 fn store4(v: vec4<f32>) -> Pack { return Pack(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0))); }\n"
            }
            Self::F16Packed => {
                "alias Pack = vec2<u32>;\n\
                 fn load4(p: Pack) -> vec4<f32> { return vec4<f32>(unpack2x16float(p.x), unpack2x16float(p.y)); }\n\
                 fn store4(v: vec4<f32>) -> Pack {\n    \
                     let c = clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0));\n    \
                     return Pack(pack2x16float(c.xy), pack2x16float(c.zw));\n\
                 }\n"
            }
        }
    }
}

/// Shared functions a body may import by a line of its own, `#import <name>`.
pub const COMMON: &[(&str, &str)] = &[
    ("activation", include_str!("../../shaders/common/activation.wgsl")),
    ("gemm", include_str!("../../shaders/common/gemm.wgsl")),
    ("grid", include_str!("../../shaders/common/grid.wgsl")),
];

/// The text of the module for `program`.
///
/// # Errors
/// If the body imports what does not exist.
pub fn compose(program: &Program, storage: Storage) -> Result<String, shader::UnknownImport> {
    shader::compose(&Compose {
        prelude: storage.prelude(),
        constants: &program.constants,
        body: program.wgsl,
        common: COMMON,
    })
}
