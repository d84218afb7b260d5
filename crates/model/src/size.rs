//! VM sizes and the resources they take.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An amount of a host's resources, used or free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Processor, in thousandths of a core.
    pub cpu_milli: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
}

impl Resources {
    /// Whether `other` fits into this amount.
    pub fn holds(self, other: Resources) -> bool {
        other.cpu_milli <= self.cpu_milli && other.memory_mib <= self.memory_mib
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Resources) -> Resources {
        Resources { cpu_milli: self.cpu_milli + other.cpu_milli, memory_mib: self.memory_mib + other.memory_mib }
    }

    /// What is left, nothing less than zero.
    #[must_use]
    pub fn minus(self, other: Resources) -> Resources {
        Resources {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
        }
    }
}

/// The sizes of the original platform of 2011 (names, cores and memory from its table of sizes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum VmSize {
    /// A shared core, 768 MiB.
    ExtraSmall,
    /// One core, 1.75 GiB.
    #[default]
    Small,
    /// Two cores, 3.5 GiB.
    Medium,
    /// Four cores, 7 GiB.
    Large,
    /// Eight cores, 14 GiB.
    ExtraLarge,
}

impl VmSize {
    /// All sizes, smallest first.
    pub const ALL: [VmSize; 5] = [VmSize::ExtraSmall, VmSize::Small, VmSize::Medium, VmSize::Large, VmSize::ExtraLarge];

    /// The name as service definitions write it.
    pub fn as_str(self) -> &'static str {
        match self {
            VmSize::ExtraSmall => "ExtraSmall",
            VmSize::Small => "Small",
            VmSize::Medium => "Medium",
            VmSize::Large => "Large",
            VmSize::ExtraLarge => "ExtraLarge",
        }
    }

    /// Virtual processors that the guest sees.
    pub fn vcpus(self) -> u32 {
        match self {
            VmSize::ExtraSmall | VmSize::Small => 1,
            VmSize::Medium => 2,
            VmSize::Large => 4,
            VmSize::ExtraLarge => 8,
        }
    }

    /// Bytes that an instance's differencing disk may take on its host: the local disk of the 2011 table of sizes, for
    /// VM roles.
    pub fn disk_quota_bytes(self) -> u64 {
        let gib = match self {
            VmSize::ExtraSmall => 20,
            VmSize::Small => 165,
            VmSize::Medium => 340,
            VmSize::Large => 850,
            VmSize::ExtraLarge => 1890,
        };
        gib << 30
    }

    /// Bits a second that an instance of this size may send, and as many that it may receive: the table of sizes of 2011.
    pub fn bits_per_second(self) -> u64 {
        let megabits = match self {
            VmSize::ExtraSmall => 5,
            VmSize::Small => 100,
            VmSize::Medium => 200,
            VmSize::Large => 400,
            VmSize::ExtraLarge => 800,
        };
        megabits * 1_000_000
    }

    /// What an instance of this size takes from its host. The shared core counts as a quarter.
    pub fn resources(self) -> Resources {
        let (cpu_milli, memory_mib) = match self {
            VmSize::ExtraSmall => (250, 768),
            VmSize::Small => (1000, 1792),
            VmSize::Medium => (2000, 3584),
            VmSize::Large => (4000, 7168),
            VmSize::ExtraLarge => (8000, 14336),
        };
        Resources { cpu_milli, memory_mib }
    }
}

impl fmt::Display for VmSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for VmSize {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        VmSize::ALL.into_iter().find(|size| size.as_str() == text).ok_or(())
    }
}
