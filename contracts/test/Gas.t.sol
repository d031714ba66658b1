// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../src/interfaces/IPaymentChannels.sol";
import {IStakeRegistry} from "../src/interfaces/IStakeRegistry.sol";
import {Market} from "./utils/Market.sol";

/// @title What each call costs as a transaction of its own: 21,000 and calldata included, storage cold
/// @dev Written to build/snapshots; tests/contracts/test_forge.py compares that with contracts/snapshots/gas.json, which
/// `make artifacts` writes anew. Salts, roots and addresses are full, because zero bytes in calldata cost a quarter.
/// forge-config: default.isolate = true
contract GasTest is Market {
    function setUp() public override {
        super.setUp();
        octo.transfer(PAYEE, 1 ether); // a provider that was paid before
        octoA.transfer(STRANGER, 1 ether);
        openChannel(salt(0), 100 ether);
    }

    function salt(uint256 i) private pure returns (uint256) {
        return uint256(keccak256(abi.encode("salt", i)));
    }

    function snap(string memory name) private {
        vm.snapshotGasLastCall("gas", name);
    }

    function test_open() external {
        address sessionKey = vm.addr(SESSION);
        vm.prank(payer);
        channels.open(PAYEE, sessionKey, bytes32(salt(1)), 100 ether);
        snap("channel: open");
    }

    function test_openWithPermit() external {
        bytes32 typehash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 said = keccak256(abi.encode(typehash, payer, address(channels), 7 ether, 0, vm.getBlockTimestamp()));
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(payerKey, keccak256(abi.encodePacked("\x19\x01", octo.DOMAIN_SEPARATOR(), said)));
        address sessionKey = vm.addr(SESSION);
        vm.prank(payer);
        channels.openWithPermit(PAYEE, sessionKey, bytes32(salt(1)), 7 ether, vm.getBlockTimestamp(), v, r, s);
        snap("channel: open with permit");
    }

    function test_topUp() external {
        bytes32 id = idOf(salt(0));
        vm.prank(payer);
        channels.topUp(id, 10 ether);
        snap("channel: top up");
    }

    function test_redeem() external {
        IPaymentChannels.Voucher memory v = voucher(salt(0), 1.23456789 ether);
        vm.prank(PAYEE);
        channels.redeem(PAYEE, v);
        snap("channel: redeem");
    }

    function test_batches() external {
        redeemMany(10);
        redeemMany(100);
    }

    function redeemMany(uint256 n) private {
        IPaymentChannels.Voucher[] memory all = new IPaymentChannels.Voucher[](n);
        for (uint256 i = 0; i < n; i++) {
            openChannel(salt(n + i), 100 ether);
            all[i] = voucher(salt(n + i), 1.23456789 ether + i);
        }
        vm.prank(PAYEE);
        channels.redeemBatch(PAYEE, all);
        vm.snapshotGasLastCall("batches", vm.toString(n));
    }

    function test_requestClose() external {
        requestClose(salt(0));
        snap("channel: request close");
    }

    function test_close() external {
        IPaymentChannels.Terms memory terms = termsOf(salt(0));
        vm.prank(PAYEE);
        channels.close(terms);
        snap("channel: close by the payee");
    }

    function test_stake() external {
        stakeAs(PROVIDER, IStakeRegistry.Tier.Consumer, 1_000 ether);
        snap("stake: first");
        bindAs(PROVIDER, SIGNER, PEER);
        snap("stake: bind signer and peer");
        vm.prank(PROVIDER);
        registry.topUp(4_000 ether);
        snap("stake: top up");
        vm.prank(PROVIDER);
        registry.changeTier(IStakeRegistry.Tier.Prosumer);
        snap("stake: change tier");
        vm.prank(PROVIDER);
        registry.unstake(5_000 ether);
        snap("stake: unstake");
        vm.warp(vm.getBlockTimestamp() + 7 days);
        vm.prank(PROVIDER);
        registry.withdraw();
        snap("stake: withdraw");
    }

    function test_slash() external {
        stakeAs(PROVIDER, IStakeRegistry.Tier.Consumer, 1_000 ether);
        bindAs(PROVIDER, SIGNER, PEER);
        slashAs(0x2546BcD3c84621e976D8185a91A922aE77ECEc30, SIGNER, 1);
        snap("stake: slash for equivocation, reporter without OCTO-A");
        slashAs(STRANGER, SIGNER, 2);
        snap("stake: slash for equivocation");
    }

    /// @dev What a channel is held against.
    function test_transfer() external {
        vm.prank(payer);
        octo.transfer(PAYEE, 1.23456789 ether);
        snap("OCTO: transfer");
    }
}
