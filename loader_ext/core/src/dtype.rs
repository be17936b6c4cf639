//! The element types of the safetensors format.

/// One element type, by its name in a header.
macro_rules! dtypes {
    ($($name:ident = $text:literal, $bits:literal;)*) => {
        /// An element type. The names are those of the format.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, non_camel_case_types, reason = "the names are the format's")]
        pub enum Dtype { $($name),* }

        impl Dtype {
            /// All element types.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$name),*];

            /// The type with this name in a header.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$name),)* _ => None }
            }

            /// The name in a header.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// Bits of one element; below 8 for packed types.
            pub fn bits(self) -> u64 {
                match self { $(Self::$name => $bits),* }
            }
        }
    };
}

dtypes! {
    BOOL = "BOOL", 8;
    F4 = "F4", 4;
    F6_E2M3 = "F6_E2M3", 6;
    F6_E3M2 = "F6_E3M2", 6;
    U8 = "U8", 8;
    I8 = "I8", 8;
    F8_E5M2 = "F8_E5M2", 8;
    F8_E4M3 = "F8_E4M3", 8;
    F8_E5M2FNUZ = "F8_E5M2FNUZ", 8;
    F8_E4M3FNUZ = "F8_E4M3FNUZ", 8;
    F8_E8M0 = "F8_E8M0", 8;
    I16 = "I16", 16;
    U16 = "U16", 16;
    F16 = "F16", 16;
    BF16 = "BF16", 16;
    I32 = "I32", 32;
    U32 = "U32", 32;
    F32 = "F32", 32;
    F64 = "F64", 64;
    I64 = "I64", 64;
    U64 = "U64", 64;
    C64 = "C64", 64;
}

impl Dtype {
    /// The alignment that lets a tensor be a view: the element's size, 1 for packed types.
    pub fn alignment(self) -> u64 {
        (self.bits() / 8).max(1)
    }

    /// Bytes of a tensor, or `None` beyond 64 bits or at a fraction of a byte.
    pub fn size_bytes(self, shape: &[u64]) -> Option<u64> {
        // A zero anywhere makes the tensor empty, but whoever takes it still computes its strides:
        // the other dimensions have to fit as well.
        let mut dimensions = shape.iter().filter(|&&dimension| dimension > 0);
        let elements = dimensions.try_fold(1u64, |product, &dim| product.checked_mul(dim))?;
        let bits = elements.checked_mul(self.bits())?;
        if shape.contains(&0) {
            return Some(0);
        }
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for &dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("F128"), None);
    }

    #[test]
    fn sizes() {
        assert_eq!(Dtype::BF16.size_bytes(&[3, 5]), Some(30));
        assert_eq!(Dtype::F32.size_bytes(&[]), Some(4));
        assert_eq!(Dtype::F32.size_bytes(&[1 << 40, 0, 1 << 18]), Some(0));
        assert_eq!(Dtype::F4.size_bytes(&[3, 0]), Some(0));
        for shape in [[u64::MAX, 0, 1], [0, 1 << 40, 1 << 40], [1 << 59, 0, 32]] {
            assert_eq!(Dtype::F32.size_bytes(&shape), None, "no reader could make strides of it");
        }
        assert_eq!(Dtype::F4.size_bytes(&[3]), None);
        assert_eq!(Dtype::F6_E2M3.size_bytes(&[4]), Some(3));
        assert_eq!(Dtype::F32.size_bytes(&[u64::MAX, 2]), None);
        assert_eq!(Dtype::F64.size_bytes(&[1 << 61]), None);
    }
}
