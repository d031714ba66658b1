// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../src/interfaces/IPaymentChannels.sol";
import {ChannelMarket} from "./utils/ChannelMarket.sol";

/// @title Vouchers become money: one or a batch of them, and none but what the session key signed
contract PaymentChannelsRedeemingTest is ChannelMarket {
    // ---- redeeming -----------------------------------------------------------------------------------------------

    function test_redeemPaysWhatTheVoucherAdds() external {
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, 30 ether);
        vm.expectEmit(address(channels));
        emit IPaymentChannels.Redeemed(idOf(1), 30 ether, v.receiptsRoot);
        vm.assertEq(redeemAs(PAYEE, v), 30 ether);
        vm.assertEq(redeemAs(PAYEE, voucher(1, 45 ether)), 15 ether);
        vm.assertEq(octo.balanceOf(PAYEE), 45 ether);
        vm.assertEq(state(1).redeemed, 45 ether);
        vm.assertEq(octo.balanceOf(address(channels)), 55 ether);
    }

    function test_redeemByAnyonePaysThePayee() external {
        openChannel(1, DEPOSIT);
        redeemAs(STRANGER, voucher(1, DEPOSIT));
        vm.assertEq(octo.balanceOf(PAYEE), DEPOSIT);
        vm.assertEq(octo.balanceOf(STRANGER), 0);
    }

    function test_redeemRefusesReplayedAndSmallerVouchers() external {
        openChannel(1, DEPOSIT);
        redeemAs(PAYEE, voucher(1, 30 ether));
        uint256[3] memory amounts = [uint256(0), 29 ether, 30 ether];
        for (uint256 i = 0; i < amounts.length; i++) {
            IPaymentChannels.Voucher memory v = voucher(1, amounts[i]);
            refuse(IPaymentChannels.Stale.selector, 1, amounts[i], 30 ether);
            channels.redeem(PAYEE, v);
        }
    }

    function test_redeemAboveTheDepositIsRefusedWholeAndStaysGood() external {
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, DEPOSIT + 1);
        refuse(IPaymentChannels.Overdrawn.selector, 1, DEPOSIT + 1, DEPOSIT);
        channels.redeem(PAYEE, v);
        IPaymentChannels.Voucher memory most = voucher(1, type(uint256).max);
        refuse(IPaymentChannels.Overdrawn.selector, 1, type(uint256).max, DEPOSIT);
        channels.redeem(PAYEE, most);
        topUpAs(payer, 1, 1);
        vm.assertEq(redeemAs(PAYEE, v), DEPOSIT + 1);
    }

    function test_redeemRefusesAnotherKey() external {
        openChannel(1, DEPOSIT);
        uint256[2] memory keys = [SIGNER, payerKey]; // not even the payer's own wallet
        for (uint256 i = 0; i < keys.length; i++) {
            IPaymentChannels.Voucher memory v = voucherBy(keys[i], 1, 1 ether);
            refuse(IPaymentChannels.BadSignature.selector, 1);
            channels.redeem(PAYEE, v);
        }
    }

    function test_redeemRefusesAChangedVoucher() external {
        openChannel(1, DEPOSIT);
        for (uint256 what = 0; what < 4; what++) {
            IPaymentChannels.Voucher memory v = voucher(1, 1 ether);
            if (what == 0) v.cumulativeAmount += 1;
            if (what == 1) v.receiptsRoot ^= bytes32(uint256(1));
            if (what == 2) v.r ^= bytes32(uint256(1));
            if (what == 3) v.vs ^= bytes32(uint256(1) << 255);
            refuse(IPaymentChannels.BadSignature.selector, 1);
            channels.redeem(PAYEE, v);
        }
    }

    function test_redeemRefusesAVoucherOfAnotherChannel() external {
        openChannel(1, DEPOSIT);
        openChannel(2, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, 1 ether);
        v.salt = bytes32(uint256(2));
        refuse(IPaymentChannels.BadSignature.selector, 2);
        channels.redeem(PAYEE, v);
    }

    function test_redeemRefusesAVoucherForAnotherPayee() external {
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, 1 ether);
        bytes32 other = channels.channelIdOf(IPaymentChannels.Terms(payer, STRANGER, v.sessionKey, v.salt));
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.Overdrawn.selector, other, 1 ether, 0));
        channels.redeem(STRANGER, v);
    }

    function test_redeemRefusesAVoucherOfAnotherEscrowNetworkOrChain() external {
        openChannel(1, DEPOSIT);
        IPaymentChannels twin = deployChannels(octo, "octo-test", PERIOD);
        IPaymentChannels foreign = deployChannels(octo, "octo-main", PERIOD);
        bytes32 root = keccak256("root");

        (bytes32 r, bytes32 vs) = compact(SESSION, foreign.voucherDigest(idOf(1), 1 ether, root));
        IPaymentChannels.Voucher memory v =
            IPaymentChannels.Voucher(payer, vm.addr(SESSION), bytes32(uint256(1)), 1 ether, root, r, vs);
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);

        (v.r, v.vs) = compact(SESSION, twin.voucherDigest(twin.channelIdOf(termsOf(1)), 1 ether, root));
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);

        uint256 home = vm.getChainId();
        vm.chainId(home + 1);
        (v.r, v.vs) = compact(SESSION, channels.voucherDigest(idOf(1), 1 ether, root));
        vm.chainId(home);
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);
    }

    function test_redeemRefusesWhatIsNoSignature() external {
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, 1 ether);
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        // Zero; a high s that fits 255 bits; the high twin of a good one, which does not.
        bytes32[3] memory seconds_ =
            [bytes32(0), bytes32(order / 2 + 1), bytes32(order - (uint256(v.vs) & (type(uint256).max >> 1)))];
        for (uint256 i = 0; i < seconds_.length; i++) {
            v.vs = seconds_[i];
            refuse(IPaymentChannels.BadSignature.selector, 1);
            channels.redeem(PAYEE, v);
        }
        v.r = 0;
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);
    }

    function test_redeemWithNobodysSessionKeyFindsNoChannel() external {
        // A signature that is none recovers the zero address: no channel can have it as its session key.
        IPaymentChannels.Voucher memory v = IPaymentChannels.Voucher(payer, address(0), 0, 1, 0, 0, 0);
        bytes32 id = channels.channelIdOf(IPaymentChannels.Terms(payer, PAYEE, address(0), 0));
        vm.expectRevert(abi.encodeWithSelector(IPaymentChannels.Overdrawn.selector, id, 1, 0));
        channels.redeem(PAYEE, v);
    }

    function testFuzz_redeemPaysTheHighestVoucherOnce(uint96[8] calldata amounts, uint96 deposit) external {
        uint256 held = bound(deposit, 1, 1_000_000 ether);
        openChannel(1, held);
        uint256 highest;
        for (uint256 i = 0; i < amounts.length; i++) {
            uint256 amount = bound(amounts[i], 0, held + 1);
            IPaymentChannels.Voucher memory v = voucher(1, amount);
            if (amount > held) refuse(IPaymentChannels.Overdrawn.selector, 1, amount, held);
            else if (amount <= highest) refuse(IPaymentChannels.Stale.selector, 1, amount, highest);
            else highest = amount;
            channels.redeem(PAYEE, v);
        }
        vm.assertEq(octo.balanceOf(PAYEE), highest);
        vm.assertEq(closeAs(PAYEE, 1), held - highest);
    }

    function testFuzz_redeemRefusesOtherKeys(uint256 key, uint96 amount) external {
        key = bound(key, 1, type(uint128).max);
        vm.assume(key != SESSION);
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucherBy(key, 1, bound(amount, 1, DEPOSIT));
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);
    }

    function testFuzz_redeemRefusesRandomSignatures(bytes32 r, bytes32 vs) external {
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher memory v = voucher(1, 1 ether);
        vm.assume(r != v.r || vs != v.vs);
        (v.r, v.vs) = (r, vs);
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeem(PAYEE, v);
    }

    // ---- batches -------------------------------------------------------------------------------------------------

    function test_batchPaysManyChannelsAtOnce() external {
        IPaymentChannels.Voucher[] memory all = new IPaymentChannels.Voucher[](3);
        for (uint256 i = 0; i < 3; i++) {
            openChannel(i, DEPOSIT);
            all[i] = voucher(i, (i + 1) * 1 ether);
        }
        vm.assertEq(channels.redeemBatch(PAYEE, all), 6 ether);
        vm.assertEq(octo.balanceOf(PAYEE), 6 ether);
        vm.assertEq(state(2).redeemed, 3 ether);
    }

    function test_batchSkipsStaleOverdrawnClosedAndRepeated() external {
        for (uint256 i = 0; i < 4; i++) {
            openChannel(i, DEPOSIT);
        }
        redeemAs(STRANGER, voucher(0, 5 ether));
        closeAs(PAYEE, 3);
        IPaymentChannels.Voucher[] memory all = new IPaymentChannels.Voucher[](6);
        all[0] = voucher(0, 5 ether); // someone redeemed it first
        all[1] = voucher(1, DEPOSIT + 1); // above the deposit
        all[2] = voucher(2, 7 ether);
        all[3] = voucher(2, 7 ether); // twice
        all[4] = voucher(3, 1 ether); // closed
        all[5] = voucher(9, 1 ether); // never opened
        vm.assertEq(channels.redeemBatch(PAYEE, all), 7 ether);
        vm.assertEq(octo.balanceOf(PAYEE), 12 ether);
        vm.assertEq(channels.redeemBatch(PAYEE, all), 0);
        vm.assertEq(channels.redeemBatch(PAYEE, new IPaymentChannels.Voucher[](0)), 0);
    }

    function test_batchRefusesABadSignature() external {
        openChannel(0, DEPOSIT);
        openChannel(1, DEPOSIT);
        IPaymentChannels.Voucher[] memory all = new IPaymentChannels.Voucher[](2);
        all[0] = voucher(0, 1 ether);
        all[1] = voucherBy(SIGNER, 1, 1 ether);
        refuse(IPaymentChannels.BadSignature.selector, 1);
        channels.redeemBatch(PAYEE, all);
        vm.assertEq(octo.balanceOf(PAYEE), 0);
    }

    function test_batchNeverPaysAnotherPayeesChannel() external {
        openChannel(0, DEPOSIT);
        IPaymentChannels.Voucher[] memory all = new IPaymentChannels.Voucher[](1);
        all[0] = voucher(0, 1 ether);
        vm.assertEq(channels.redeemBatch(STRANGER, all), 0);
        vm.assertEq(octo.balanceOf(STRANGER), 0);
    }
}
