// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IStakeRegistry} from "../src/interfaces/IStakeRegistry.sol";
import {StakeMarket} from "./utils/StakeMarket.sol";

/// @title Stakes, tiers, unbonding and binding; slashing has a file of its own
contract StakeRegistryTest is StakeMarket {
    // ---- staking, topping up, tiers ------------------------------------------------------------------------------

    function test_tiersTakeWhatTheySay() external {
        vm.assertEq(registry.minimumOf(CONSUMER), 1_000 ether);
        vm.assertEq(registry.minimumOf(PROSUMER), 5_000 ether);
        vm.assertEq(registry.minimumOf(ENTERPRISE), 10_000 ether);
        vm.expectRevert(IStakeRegistry.NoTier.selector);
        registry.minimumOf(IStakeRegistry.Tier.None);
    }

    function test_stakeBondsAndActivatesUpToItsTier() external {
        vm.expectEmit(address(registry));
        emit IStakeRegistry.Staked(PROVIDER, PROSUMER, 5_000 ether, 5_000 ether);
        stakeAs(PROVIDER, PROSUMER, 5_000 ether);
        bindAs(PROVIDER, SIGNER, PEER);
        vm.assertTrue(registry.isActive(PROVIDER, CONSUMER));
        vm.assertTrue(registry.isActive(PROVIDER, PROSUMER));
        vm.assertFalse(registry.isActive(PROVIDER, ENTERPRISE));
        vm.assertFalse(registry.isActive(PROVIDER, IStakeRegistry.Tier.None));
        vm.assertFalse(registry.isActive(OTHER, CONSUMER));
        vm.assertEq(octoA.balanceOf(address(registry)), 5_000 ether);
        vm.assertEq(registry.token(), address(octoA));
    }

    function test_stakeWithoutASignerIsNotActive() external {
        stakeAs(PROVIDER, CONSUMER, 1_000 ether);
        vm.assertFalse(registry.isActive(PROVIDER, CONSUMER));
        bindAs(PROVIDER, SIGNER, PEER);
        vm.assertTrue(registry.isActive(PROVIDER, CONSUMER));
    }

    function test_stakeBelowItsTierIsRefused() external {
        vm.expectRevert(
            abi.encodeWithSelector(IStakeRegistry.BelowTier.selector, CONSUMER, 1_000 ether, 1_000 ether - 1)
        );
        vm.prank(PROVIDER);
        registry.stake(CONSUMER, 1_000 ether - 1);
    }

    function test_stakeForNoTierOrOfNothingIsRefused() external {
        vm.startPrank(PROVIDER);
        vm.expectRevert(IStakeRegistry.NoTier.selector);
        registry.stake(IStakeRegistry.Tier.None, 1_000 ether);
        vm.expectRevert(IStakeRegistry.ZeroAmount.selector);
        registry.stake(CONSUMER, 0);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.AmountTooLarge.selector, type(uint256).max));
        registry.stake(CONSUMER, type(uint256).max);
        registry.stake(CONSUMER, 1_000 ether);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.AmountTooLarge.selector, type(uint96).max));
        registry.topUp(type(uint96).max);
    }

    function test_stakeWithPermitNeedsNoApproval() external {
        octoA.transfer(payer, 1_000 ether);
        bytes32 typehash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        uint256 deadline = vm.getBlockTimestamp();
        bytes32 said = keccak256(abi.encode(typehash, payer, address(registry), 1_000 ether, 0, deadline));
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(payerKey, keccak256(abi.encodePacked("\x19\x01", octoA.DOMAIN_SEPARATOR(), said)));
        vm.prank(payer);
        registry.stakeWithPermit(CONSUMER, 1_000 ether, deadline, v, r, s);
        vm.assertEq(registry.stakeOf(payer).bonded, 1_000 ether);
    }

    function test_topUpAndChangeTier() external {
        provide(1_000 ether);
        vm.startPrank(PROVIDER);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.BelowTier.selector, PROSUMER, 5_000 ether, 1_000 ether));
        registry.changeTier(PROSUMER);
        registry.topUp(4_000 ether);
        vm.expectEmit(address(registry));
        emit IStakeRegistry.TierChanged(PROVIDER, CONSUMER, PROSUMER);
        registry.changeTier(PROSUMER);
        vm.assertTrue(registry.isActive(PROVIDER, PROSUMER));
        registry.changeTier(CONSUMER); // and down, so that the surplus can leave
        registry.unstake(4_000 ether);
        vm.assertTrue(registry.isActive(PROVIDER, CONSUMER));
        vm.expectRevert(IStakeRegistry.NoTier.selector);
        registry.changeTier(IStakeRegistry.Tier.None);
        vm.expectRevert(IStakeRegistry.ZeroAmount.selector);
        registry.topUp(0);
    }

    function test_topUpNeedsAStake() external {
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotStaked.selector, 0));
        vm.prank(PROVIDER);
        registry.topUp(1 ether);
    }

    // ---- unbonding -----------------------------------------------------------------------------------------------

    function test_unbondingTakesSevenDays() external {
        provide(1_000 ether);
        uint48 releaseAt = uint48(vm.getBlockTimestamp() + 7 days);
        vm.expectEmit(address(registry));
        emit IStakeRegistry.Unbonding(PROVIDER, 1_000 ether, 1_000 ether, releaseAt);
        unstakeAs(PROVIDER, 1_000 ether);
        vm.assertFalse(registry.isActive(PROVIDER, CONSUMER));
        later(7 days - 1);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.TooEarly.selector, releaseAt));
        vm.prank(PROVIDER);
        registry.withdraw();
        later(1);
        vm.prank(PROVIDER);
        vm.assertEq(registry.withdraw(), 1_000 ether);
        vm.assertEq(octoA.balanceOf(PROVIDER), 100_000 ether);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.TooEarly.selector, 0));
        vm.prank(PROVIDER);
        registry.withdraw();
    }

    function test_newStakeDoesNotCancelUnbonding() external {
        provide(1_000 ether);
        unstakeAs(PROVIDER, 1_000 ether);
        uint48 releaseAt = held().releaseAt;
        later(3 days);
        stakeAs(PROVIDER, CONSUMER, 2_000 ether);
        vm.assertEq(held().releaseAt, releaseAt);
        vm.assertEq(held().unbonding, 1_000 ether);
        vm.assertEq(held().bonded, 2_000 ether);
        later(4 days);
        vm.prank(PROVIDER);
        vm.assertEq(registry.withdraw(), 1_000 ether);
        vm.assertTrue(registry.isActive(PROVIDER, CONSUMER));
    }

    function test_unstakingMoreRestartsTheClockForAll() external {
        provide(3_000 ether);
        unstakeAs(PROVIDER, 1_000 ether);
        later(6 days);
        unstakeAs(PROVIDER, 1_000 ether);
        vm.assertEq(held().unbonding, 2_000 ether);
        vm.assertEq(held().releaseAt, vm.getBlockTimestamp() + 7 days);
    }

    function test_unstakeKeepsTheTiersMinimumOrTakesAll() external {
        provide(1_500 ether);
        vm.startPrank(PROVIDER);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.BelowTier.selector, CONSUMER, 1_000 ether, 999 ether));
        registry.unstake(501 ether);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotStaked.selector, 1_500 ether));
        registry.unstake(1_501 ether);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.NotStaked.selector, 1_500 ether));
        registry.unstake(type(uint256).max);
        vm.expectRevert(IStakeRegistry.ZeroAmount.selector);
        registry.unstake(0);
        registry.unstake(500 ether);
        registry.unstake(1_000 ether);
        vm.assertEq(uint256(held().tier), 0);
    }

    // ---- binding -------------------------------------------------------------------------------------------------

    function test_bindTiesSignerAndPeerToTheStaker() external {
        address signer = vm.addr(SIGNER);
        IStakeRegistry.Signature memory signature = bindingBy(SIGNER, PROVIDER, signer, PEER);
        vm.expectEmit(address(registry));
        emit IStakeRegistry.Bound(PROVIDER, signer, PEER);
        vm.prank(PROVIDER);
        registry.bind(signer, PEER, signature);
        IStakeRegistry.Identity memory identity = registry.identityOf(PROVIDER);
        vm.assertEq(identity.receiptSigner, signer);
        vm.assertEq(identity.peer, PEER);
        vm.assertEq(identity.nonce, 1);
        vm.assertEq(registry.signerRecord(signer).staker, PROVIDER);
    }

    function test_bindNeedsTheSignersSignatureForThisStakerPeerAndNumber() external {
        address signer = vm.addr(SIGNER);
        IStakeRegistry.Signature[4] memory wrong = [
            bindingBy(OTHER_SIGNER, PROVIDER, signer, PEER),
            bindingBy(SIGNER, OTHER, signer, PEER),
            bindingBy(SIGNER, PROVIDER, signer, keccak256("another peer")),
            IStakeRegistry.Signature(0, 0)
        ];
        for (uint256 i = 0; i < wrong.length; i++) {
            vm.expectRevert(IStakeRegistry.BadSignature.selector);
            vm.prank(PROVIDER);
            registry.bind(signer, PEER, wrong[i]);
        }
        IStakeRegistry.Signature memory once = bindingBy(SIGNER, PROVIDER, signer, PEER);
        vm.prank(PROVIDER);
        registry.bind(signer, PEER, once);
        vm.expectRevert(IStakeRegistry.BadSignature.selector);
        vm.prank(PROVIDER);
        registry.bind(signer, PEER, once);
    }

    function test_bindingHoldsAtOneRegistryOnly() external {
        IStakeRegistry twin = deployRegistry(octoA, "octo-test");
        address signer = vm.addr(SIGNER);
        (bytes32 r, bytes32 vs) = compact(SIGNER, twin.bindingDigest(PROVIDER, signer, PEER, 0));
        vm.expectRevert(IStakeRegistry.BadSignature.selector);
        vm.prank(PROVIDER);
        registry.bind(signer, PEER, IStakeRegistry.Signature(r, vs));
    }

    function test_bindRefusesNobody() external {
        vm.expectRevert(IStakeRegistry.ZeroIdentity.selector);
        registry.bind(address(0), PEER, IStakeRegistry.Signature(0, 0));
        vm.expectRevert(IStakeRegistry.ZeroIdentity.selector);
        registry.bind(OTHER, 0, IStakeRegistry.Signature(0, 0));
    }

    function test_signerAnswersForOneStakerUntilItsRotationIsPast() external {
        provide(1_000 ether);
        address signer = vm.addr(SIGNER);
        tryToTake(signer);
        bindAs(PROVIDER, OTHER_SIGNER, PEER);
        uint48 until = uint48(vm.getBlockTimestamp() + 7 days);
        vm.assertEq(registry.signerRecord(signer).slashableUntil, until);
        later(7 days - 1);
        tryToTake(signer);
        later(1);
        bindAs(OTHER, SIGNER, PEER);
        vm.assertEq(registry.signerRecord(signer).staker, OTHER);
    }

    function tryToTake(address signer) private {
        IStakeRegistry.Signature memory signature = bindingBy(SIGNER, OTHER, signer, PEER);
        vm.expectRevert(abi.encodeWithSelector(IStakeRegistry.SignerTaken.selector, signer, PROVIDER));
        vm.prank(OTHER);
        registry.bind(signer, PEER, signature);
    }

    function test_bindingTheSameSignerAgainChangesThePeerOnly() external {
        provide(1_000 ether);
        bindAs(PROVIDER, SIGNER, keccak256("another peer"));
        vm.assertEq(registry.signerRecord(vm.addr(SIGNER)).slashableUntil, 0);
        vm.assertEq(registry.identityOf(PROVIDER).peer, keccak256("another peer"));
    }

    function test_rotatingBackMakesAnOldSignerCurrentAgain() external {
        provide(1_000 ether);
        bindAs(PROVIDER, OTHER_SIGNER, PEER);
        bindAs(PROVIDER, SIGNER, PEER);
        vm.assertEq(registry.signerRecord(vm.addr(SIGNER)).slashableUntil, 0);
        vm.assertEq(registry.signerRecord(vm.addr(OTHER_SIGNER)).slashableUntil, vm.getBlockTimestamp() + 7 days);
    }
}
