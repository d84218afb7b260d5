//! Random bits that come in as data.

/// A seed from outside, drawn fresh for each step, stretched by SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Copy, Debug)]
pub struct Entropy(pub u64);

impl Entropy {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A computer name: `mf` and ten letters or digits.
    pub fn computer_name(&mut self) -> String {
        const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut bits = self.bits();
        let mut name = String::with_capacity(12);
        name.push_str("mf");
        for _ in 0..10 {
            name.push(char::from(ALPHABET[(bits % 36) as usize]));
            bits /= 36;
        }
        name
    }

    /// 32 hexadecimal digits.
    pub fn deployment_id(&mut self) -> String {
        format!("{:016x}{:016x}", self.bits(), self.bits())
    }
}
