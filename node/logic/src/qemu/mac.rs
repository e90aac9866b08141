//! MAC addresses that every node makes alike.

use godwit_shared::model::VmId;

/// The address of a VM's network card: `52:` (locally administered, unicast)
/// and 40 bits of a hash (FNV-1a, 64 bits) of the VM's id and the card's index.
pub fn mac_address(vm: VmId, index: usize) -> String {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let id = *vm.as_uuid().as_bytes();
    let index = (index as u64).to_le_bytes();
    let hash = id.iter().chain(&index).fold(OFFSET, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    });
    // The high bits of a product are the better mixed ones.
    hash.to_be_bytes()[..5]
        .iter()
        .fold("52".to_owned(), |mac, octet| mac + &format!(":{octet:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_stable_and_differ() {
        let vm = VmId::from_u128(7);
        assert_eq!(mac_address(vm, 0), mac_address(vm, 0));
        assert_eq!(mac_address(vm, 0), "52:79:e9:ea:47:ef");
        let mut seen = std::collections::HashSet::new();
        for id in 0..1000 {
            for index in 0..16 {
                assert!(seen.insert(mac_address(VmId::from_u128(id), index)));
            }
        }
    }
}
