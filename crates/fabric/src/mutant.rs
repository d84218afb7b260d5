//! Mistakes that can be planted, to prove that the simulation finds them. Without the feature `mutants` none of them
//! exists in the program: [`Planted::is`] is then the constant `false`.

/// A mistake of the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Invariant 1: a controller that has just started trusts what it does not know, and gives hosts up at once.
    ForgetLeases,
    /// Invariant 1: hosts are given up without a majority of the voters.
    IgnoreMajority,
    /// Invariant 1: newcomers vote before the others know of them.
    HastyVoters,
    /// Invariant 1: after a backup was restored, hosts make at once what the records say.
    HastyRestore,
    /// Invariant 2: fault domains do not matter.
    IgnoreDomains,
    /// Invariant 3: an update takes the next domain before the one before is back.
    HastyWalk,
    /// Invariant 4: a new disk gets the number of the old one.
    SameGeneration,
    /// Invariant 6: a request that comes again is carried out again.
    ForgetRequests,
    /// Invariant 7: a VM that is lost with its host is not metered.
    LoseUsage,
    /// Invariant 7: a VM is metered once when it is retired and once more when it is gone.
    MeterTwice,
    /// Invariant 8: a VM that is going keeps its name and its route.
    KeepNames,
    /// Invariant 8: a role that is scaled in keeps one instance too many.
    KeepOne,
    /// Invariant 9: a VM that is going takes no room any more.
    ForgetRetiring,
    /// Invariant 10: there is no breaker.
    NoBreaker,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 14] = [
        Mutant::ForgetLeases,
        Mutant::IgnoreMajority,
        Mutant::HastyVoters,
        Mutant::HastyRestore,
        Mutant::IgnoreDomains,
        Mutant::HastyWalk,
        Mutant::SameGeneration,
        Mutant::ForgetRequests,
        Mutant::LoseUsage,
        Mutant::MeterTwice,
        Mutant::KeepNames,
        Mutant::KeepOne,
        Mutant::ForgetRetiring,
        Mutant::NoBreaker,
    ];
}

/// The mistake that has been planted, if one can be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted(#[cfg(feature = "mutants")] Option<Mutant>);

impl Planted {
    /// Plants a mistake.
    #[cfg(feature = "mutants")]
    pub fn new(mutant: Mutant) -> Planted {
        Planted(Some(mutant))
    }

    /// Whether it is this one.
    pub(crate) fn is(self, mutant: Mutant) -> bool {
        #[cfg(feature = "mutants")]
        return self.0 == Some(mutant);
        #[cfg(not(feature = "mutants"))]
        {
            let _ = mutant;
            false
        }
    }
}
