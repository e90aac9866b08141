//! The production code keeps what [`godwit_model::judge`] asks of it, in every
//! state within the bounds. What is printed is what `docs/model.md` says.
#![allow(
    clippy::print_stdout,
    clippy::panic,
    clippy::expect_used,
    reason = "tests that print their numbers"
)]

use godwit_model::cases;
use godwit_model::run::{self, Order};

fn holds(name: &str) {
    let case = cases::quick().into_iter().find(|case| case.name == name);
    let case = case.expect("there is no case of that name");
    let found = run::search(&case, Order::AnyFirst);
    println!("{name}: {}", found.numbers());
    for (property, way) in &found.broken {
        println!("BROKEN: {property}\n{}", run::told(&case.model, way));
    }
    assert!(found.broken.is_empty(), "{name}: see above");
    // A model in which nothing happens breaks no rule.
    for property in case.possible {
        assert!(found.possible.contains(property), "never: {property}");
    }
}

macro_rules! cases {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                holds(stringify!($name));
            }
        )*

        #[test]
        fn none_is_left_out() {
            let names: Vec<&str> = cases::quick().iter().map(|case| case.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

cases! {
    two_faults
    two_faults_and_a_stranger
    two_faults_paused
    three_faults
    and_back
    and_on
    and_back_two_faults
    coordinator
    coordinator_two_faults
    coordinator_and_back
    postcopy_two_faults
    postcopy_and_back
    postcopy_coordinator
    disks_two_faults
    disks_and_back
    disks_postcopy
}
