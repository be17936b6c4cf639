//! Every instruction set against sums in float64.

use proptest::prelude::*;

use crate::element::{round, widen};
use crate::{Element, Instructions, Kernels, Matrix, MatrixMut, Product};

/// A product's matrices, with gaps between rows and a frame that nobody may touch.
#[derive(Debug, Clone)]
struct Case {
    tokens: usize,
    inputs: usize,
    outputs: usize,
    x_gap: usize,
    out_gap: usize,
    x_element: Element,
    out_element: Element,
    bias: Option<Element>,
    x: Vec<f32>,
    weight: Vec<u16>,
    bias_values: Vec<f32>,
}

const UNTOUCHED: u8 = 0xa5;

impl Case {
    fn random(
        (tokens, inputs, outputs): (usize, usize, usize),
        (x_gap, out_gap): (usize, usize),
        (x_element, out_element, bias): (Element, Element, Option<Element>),
        seed: u64,
    ) -> Self {
        let mut numbers = Numbers(seed | 1);
        let mut exact = |count: usize| -> Vec<f32> {
            (0..count).map(|_| widen(round(numbers.next()))).collect()
        };
        let x = exact(tokens * inputs);
        let weight = exact(outputs * inputs).into_iter().map(round).collect();
        let bias_values = exact(outputs);
        Self {
            tokens,
            inputs,
            outputs,
            x_gap,
            out_gap,
            x_element,
            out_element,
            bias,
            x,
            weight,
            bias_values,
        }
    }

    fn stored(&self, element: Element, values: &[f32], row: usize, gap: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for row in values.chunks(row.max(1)) {
            for value in row {
                match element {
                    Element::Float32 => bytes.extend(value.to_ne_bytes()),
                    Element::Bfloat16 => bytes.extend(round(*value).to_ne_bytes()),
                }
            }
            bytes.extend(vec![0xff; gap * element.bytes()]); // NaN, if anyone reads it
        }
        bytes
    }

    fn run(&self, kernels: &Kernels) -> Vec<f32> {
        let x = self.stored(self.x_element, &self.x, self.inputs, self.x_gap);
        let bias = self.bias.map(|element| self.stored(element, &self.bias_values, 1, 0));
        let stride = (self.outputs + self.out_gap).max(1);
        let width = self.out_element.bytes();
        let mut out = vec![UNTOUCHED; (self.tokens * stride + 1) * width];
        // SAFETY: all matrices were made as large as the product says.
        unsafe {
            kernels.multiply(&Product {
                x: Matrix {
                    start: x.as_ptr(),
                    element: self.x_element,
                    stride: self.inputs + self.x_gap,
                },
                weight: self.weight.as_ptr(),
                bias: bias.as_ref().zip(self.bias).map(|(bias, of)| (bias.as_ptr(), of)),
                out: MatrixMut { start: out.as_mut_ptr(), element: self.out_element, stride },
                tokens: self.tokens,
                inputs: self.inputs,
                outputs: self.outputs,
            });
        }
        let mut found = Vec::new();
        for (index, bytes) in out.chunks(width).enumerate() {
            if index / stride < self.tokens && index % stride < self.outputs {
                found.push(match self.out_element {
                    Element::Float32 => f32::from_ne_bytes(bytes.try_into().unwrap()),
                    Element::Bfloat16 => widen(u16::from_ne_bytes(bytes.try_into().unwrap())),
                });
            } else {
                assert!(bytes.iter().all(|byte| *byte == UNTOUCHED), "wrote to {index}");
            }
        }
        found
    }

    /// Each output, and the sum of its terms' sizes.
    fn exact(&self) -> Vec<(f64, f64)> {
        let mut out = Vec::new();
        for x in self.x.chunks(self.inputs) {
            for (output, weight) in self.weight.chunks(self.inputs).enumerate() {
                let bias =
                    if self.bias.is_some() { f64::from(self.bias_values[output]) } else { 0.0 };
                let terms = x.iter().zip(weight).map(|(x, w)| f64::from(*x) * f64::from(widen(*w)));
                let size: f64 = terms.clone().map(f64::abs).sum();
                out.push((bias + terms.sum::<f64>(), size + bias.abs()));
            }
        }
        out
    }

    fn check(&self, kernels: &Kernels) {
        let step = match self.out_element {
            Element::Float32 => 0.0,
            Element::Bfloat16 => 2f64.powi(-8),
        };
        for (found, (exact, size)) in self.run(kernels).into_iter().zip(self.exact()) {
            let allowed = step * exact.abs() + size * 2f64.powi(-24) * 8.0 + 1e-30;
            let error = (f64::from(found) - exact).abs();
            assert!(error <= allowed, "{found} for {exact}: off by {error}, not {allowed}");
        }
    }
}

/// xorshift64* (Vigna, arXiv:1402.6246), as numbers of -1 to 1.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let upper = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        upper as f32 / 8_388_608.0 - 1.0
    }
}

fn kernels(threads: usize) -> Vec<Kernels> {
    let here = Instructions::ALL.into_iter().filter(|set| set.available());
    here.map(|set| Kernels::with(set, threads).unwrap()).collect()
}

fn element() -> impl Strategy<Value = Element> {
    prop_oneof![Just(Element::Float32), Just(Element::Bfloat16)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn a_product_is_the_sum_of_products(
        sizes in (1usize..=40, 1usize..=200, 1usize..=70),
        gaps in (0usize..3, 0usize..3),
        elements in (element(), element(), proptest::option::of(element())),
        threads in prop_oneof![Just(1usize), Just(2), Just(4)],
        seed in any::<u64>(),
    ) {
        let case = Case::random(sizes, gaps, elements, seed);
        kernels(threads).iter().for_each(|kernels| case.check(kernels));
    }
}

#[test]
fn products_of_several_blocks() {
    for kernels in kernels(2) {
        for tokens in [1, 3, 6, 7, 8, 9, 13, 37] {
            for (inputs, outputs) in [(576, 960), (1536, 579), (1537, 130), (70_000, 17)] {
                let elements = (Element::Float32, Element::Float32, None);
                Case::random((tokens, inputs, outputs), (0, 0), elements, 3).check(&kernels);
            }
        }
    }
}

#[test]
fn nothing_in_is_nothing_out() {
    let elements = (Element::Float32, Element::Float32, Some(Element::Float32));
    for kernels in kernels(2) {
        for sizes in [(0, 5, 5), (5, 5, 0), (0, 0, 0)] {
            assert!(Case::random(sizes, (0, 0), elements, 1).run(&kernels).is_empty());
        }
        let no_inputs = Case::random((9, 0, 3), (0, 0), elements, 1);
        let found = no_inputs.run(&kernels);
        assert_eq!(found.chunks(3).collect::<Vec<_>>(), vec![&no_inputs.bias_values[..]; 9]);
    }
}

#[test]
fn what_is_no_number_spoils_its_own_outputs_only() {
    for kernels in kernels(2) {
        for tokens in [1, 4, 9] {
            for at in [0, 1, 31, 32, 40] {
                let elements = (Element::Bfloat16, Element::Bfloat16, None);
                let mut case = Case::random((tokens, 41, 11), (0, 0), elements, 5);
                case.x.iter_mut().for_each(|x| *x = x.abs() + 1.0);
                case.weight[3 * 41 + at] = 0x7fc1;
                case.weight[8 * 41 + at] = 0xff80;
                case.x[(tokens - 1) * 41 + at] = f32::INFINITY;
                for (index, found) in case.run(&kernels).into_iter().enumerate() {
                    let (token, output) = (index / 11, index % 11);
                    match output {
                        3 => assert!(found.is_nan()),
                        8 => assert_eq!(found, f32::NEG_INFINITY),
                        _ => assert_eq!(found.is_infinite(), token == tokens - 1),
                    }
                }
            }
        }
    }
}

#[test]
fn results_are_rounded_once_and_ties_to_even() {
    // 1 + 2^-8 and 1 + 3 * 2^-8 lie between two bfloat16; a sum of rounded parts would differ.
    let (x, even, odd) = (vec![1.0, 1.0, 1.0], 0x3b80, 0x3c40); // 2^-8, 3 * 2^-8
    for kernels in kernels(1) {
        let elements = (Element::Float32, Element::Bfloat16, None);
        let mut case = Case::random((1, 3, 2), (0, 0), elements, 1);
        case.x.clone_from(&x);
        case.weight = vec![0x3f80, even, 0, 0x3f80, odd, 0];
        assert_eq!(case.run(&kernels), [1.0, 1.0 + 4.0 / 256.0]);
    }
}

#[test]
fn callers_at_once_do_not_disturb_each_other() {
    for kernels in kernels(2) {
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let kernels = &kernels;
                scope.spawn(move || {
                    let elements = (Element::Float32, Element::Float32, None);
                    let tokens = 1 + 5 * seed as usize;
                    let case = Case::random((tokens, 200, 300), (0, 0), elements, seed);
                    (0..50).for_each(|_| case.check(kernels));
                });
            }
        });
    }
}
